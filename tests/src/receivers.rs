//! Receivers of audit records: rsyslog, syslog-ng, and connections that a test itself serves.
//!
//! Programs come from the directory in the environment variable `TEST_RECEIVERS`, which `ci/test` fills
//! with Debian's packages, or else are the system's.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use std::{env, thread};

use serde_json::Value;
use tempfile::TempDir;

use crate::ports;
use crate::tls::Leaf;
use crate::wait::wait_for;

const PATIENCE: Duration = Duration::from_secs(20);

/// A program of Debian's, with what it needs to find its libraries.
///
/// # Panics
/// When there is none.
pub fn program(name: &str) -> Command {
    let directory = env::var_os("TEST_RECEIVERS").map(PathBuf::from);
    let root = directory.as_deref().unwrap_or(Path::new("/"));
    let path = root.join("usr/sbin").join(name);
    assert!(path.exists(), "{} does not exist: run ci/test", path.display());
    let mut command = Command::new(path);
    if directory.is_some() {
        let libraries = libraries(root);
        command.env("LD_LIBRARY_PATH", env::join_paths(libraries).expect("paths without colons"));
    }
    command
}

/// The directories of libraries below `root`, such as `usr/lib/x86_64-linux-gnu`.
fn libraries(root: &Path) -> Vec<PathBuf> {
    let entries = ["lib", "usr/lib"].map(|lib| fs::read_dir(root.join(lib)).ok());
    let entries = entries.into_iter().flatten().flatten().flatten().map(|entry| entry.path());
    entries.filter(|path| path.to_string_lossy().ends_with("-linux-gnu")).collect()
}

/// What rsyslog listens on.
pub enum Input<'a> {
    /// UDP.
    Udp,
    /// TCP.
    Tcp,
    /// TCP with TLS, and its certificate.
    Tls(&'a Leaf),
    /// A local socket.
    Unix,
}

/// A running rsyslogd. Dropping it stops it.
pub struct Rsyslog {
    child: Option<Child>,
    dir: TempDir,
    port: u16,
    modules: Option<PathBuf>,
}

/// A message as rsyslog understood it.
#[derive(Clone, Debug)]
pub struct Message {
    /// PRI, HOSTNAME, APP-NAME, PROCID, MSGID and the time.
    pub header: BTreeMap<String, String>,
    /// The parameters of each SD-ELEMENT.
    pub data: Value,
    /// MSG.
    pub text: String,
}

impl Rsyslog {
    /// Starts it, for messages of up to 64 KB, and waits until it listens.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start(input: &Input<'_>) -> Self {
        Self::start_with(input, "maxMessageSize=\"64k\"")
    }

    /// Starts it with its default limit for the length of a message.
    ///
    /// # Panics
    /// When it does not start.
    pub fn as_shipped(input: &Input<'_>) -> Self {
        Self::start_with(input, "")
    }

    fn start_with(input: &Input<'_>, settings: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = |name: &str| dir.path().join(name).display().to_string();
        let port = ports::free_port();
        let mut global = String::new();
        let input = match input {
            Input::Udp => format!(
                "module(load=\"imudp\") input(type=\"imudp\" address=\"127.0.0.1\" port=\"{port}\")"
            ),
            Input::Tcp => format!(
                "module(load=\"imtcp\") input(type=\"imtcp\" address=\"127.0.0.1\" port=\"{port}\")"
            ),
            Input::Tls(leaf) => {
                let (certificate, key) = leaf.write(dir.path(), "server");
                global = format!(
                    "defaultNetstreamDriver=\"ossl\" defaultNetstreamDriverCertFile=\"{}\" \
                     defaultNetstreamDriverKeyFile=\"{}\" defaultNetstreamDriverCAFile=\"{0}\"",
                    certificate.display(),
                    key.display()
                );
                format!(
                    "module(load=\"imtcp\" streamDriver.name=\"ossl\" streamDriver.mode=\"1\" \
                     streamDriver.authMode=\"anon\")
                     input(type=\"imtcp\" address=\"127.0.0.1\" port=\"{port}\")"
                )
            }
            Input::Unix => format!(
                "module(load=\"imuxsock\" sysSock.use=\"off\")
                 input(type=\"imuxsock\" socket=\"{}\" useSpecialParser=\"off\" \
                       parseHostname=\"on\")",
                path("socket")
            ),
        };
        let property =
            |name: &str| format!("property(outname=\"{name}\" name=\"{name}\" format=\"jsonf\")\n");
        let properties: String =
            ["pri", "hostname", "app-name", "procid", "msgid", "msg"].map(property).concat();
        let config = format!(
            "global(workDirectory=\"{}\" {settings} net.enableDNS=\"off\" {global})
             module(load=\"mmpstrucdata\")
             template(name=\"all\" type=\"list\" option.jsonf=\"on\") {{
                 {properties}
                 property(outname=\"time\" name=\"timereported\" dateFormat=\"rfc3339\" format=\"jsonf\")
                 property(outname=\"data\" name=\"$!rfc5424-sd\" format=\"jsonf\")
             }}
             ruleset(name=\"all\") {{
                 action(type=\"mmpstrucdata\" sd_name.lowercase=\"off\")
                 action(type=\"omfile\" file=\"{}\" template=\"all\")
             }}
             {input}
             $DefaultRuleset all\n",
            dir.path().display(),
            path("messages"),
        );
        fs::write(path("rsyslog.conf"), config).expect("the temporary directory is ours");
        let modules = env::var_os("TEST_RECEIVERS").map(|root| {
            let directories = libraries(Path::new(&root)).into_iter();
            let mut modules = directories.map(|directory| directory.join("rsyslog"));
            modules.find(|modules| modules.exists()).expect("rsyslog's modules")
        });
        let mut rsyslog = Self { child: None, dir, port, modules };
        rsyslog.resume();
        rsyslog
    }

    /// Starts it again.
    ///
    /// # Panics
    /// When it does not start.
    pub fn resume(&mut self) {
        let path = |name: &str| self.dir.path().join(name);
        let log = fs::File::create(path("log")).expect("a log file");
        let mut command = program("rsyslogd");
        command.arg("-n").arg("-i").arg(path("pid")).arg("-f").arg(path("rsyslog.conf"));
        if let Some(modules) = &self.modules {
            command.arg("-M").arg(modules);
        }
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn();
        self.child = Some(child.expect("rsyslogd runs"));
        let said = || fs::read_to_string(path("log")).unwrap_or_default();
        wait_for(PATIENCE, "rsyslogd", || if path("pid").exists() { Ok(()) } else { Err(said()) });
    }

    /// Stops it, which makes it write everything it has received.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It is reaped, even if it has ended by itself.
            let _ = Command::new("kill").arg(child.id().to_string()).status();
            let _ = child.wait();
        }
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The local socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    /// The messages from nginx so far.
    pub fn messages(&self) -> Vec<Message> {
        let lines = fs::read_to_string(self.dir.path().join("messages")).unwrap_or_default();
        let whole = lines.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let messages = whole.lines().map(|line| {
            let message: BTreeMap<String, String> = serde_json::from_str(line)
                .unwrap_or_else(|error| panic!("rsyslog wrote {line}: {error}"));
            Message {
                data: serde_json::from_str(&message["data"]).unwrap_or(Value::Null),
                text: message["msg"].clone(),
                header: message,
            }
        });
        messages.filter(|message| message.header["app-name"] != "rsyslogd").collect()
    }

    /// Waits until it got `count` messages from nginx.
    ///
    /// # Panics
    /// When they do not come.
    pub fn wait_messages(&self, count: usize) -> Vec<Message> {
        wait_for(PATIENCE, "messages in rsyslog", || match self.messages() {
            messages if messages.len() >= count => Ok(messages),
            messages => Err(format!("{} of {count}", messages.len())),
        })
    }
}

impl Drop for Rsyslog {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", fs::read_to_string(self.dir.path().join("log")).unwrap_or_default());
        }
        self.stop();
    }
}

/// A running syslog-ng, unpacked into the directory in `TEST_SYSLOG_NG`. Dropping it stops it.
pub struct SyslogNg {
    child: Child,
    dir: TempDir,
    port: u16,
}

impl SyslogNg {
    /// Starts it with this source, in which `%PORT%` is its port; nothing where there is none.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start(source: &str) -> Option<Self> {
        let root = PathBuf::from(env::var_os("TEST_SYSLOG_NG")?);
        let dir = tempfile::tempdir().expect("a temporary directory");
        let port = ports::free_port();
        let path = |name: &str| dir.path().join(name);
        let source = source.replace("%PORT%", &port.to_string());
        let config = format!(
            "@version: 3.38
             source in {{ {source} }};
             destination out {{
                 file(\"{}\" template(\"$PROGRAM ${{.SDATA.tirreno@32473.url}} $MSG\\n\"));
             }};
             log {{ source(in); destination(out); }};\n",
            path("messages").display()
        );
        fs::write(path("conf"), config).expect("the temporary directory is ours");
        let own = root.join("usr/lib/syslog-ng");
        let modules = fs::read_dir(&own).expect("syslog-ng").flatten().map(|entry| entry.path());
        let modules = modules.into_iter().find(|path| path.is_dir()).expect("its modules");
        let libraries = libraries(&root).into_iter().chain([own]);
        let child = Command::new(root.join("usr/sbin/syslog-ng"))
            .env("LD_LIBRARY_PATH", env::join_paths(libraries).expect("paths without colons"))
            .arg("-F")
            .arg("--module-path")
            .arg(modules)
            .arg("-f")
            .arg(path("conf"))
            .arg("-R")
            .arg(path("state"))
            .arg("-p")
            .arg(path("pid"))
            .arg("-c")
            .arg(path("control"))
            .stdin(Stdio::null())
            .spawn()
            .expect("syslog-ng runs");
        let syslog_ng = Self { child, dir, port };
        wait_for(PATIENCE, "syslog-ng", || {
            TcpStream::connect(("127.0.0.1", port)).map(drop).map_err(|error| error.to_string())
        });
        Some(syslog_ng)
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Waits until it has written `count` lines, `APP-NAME URL MSG` each.
    ///
    /// # Panics
    /// When it does not.
    pub fn wait_lines(&self, count: usize) -> Vec<String> {
        wait_for(PATIENCE, "lines of syslog-ng", || {
            let text = fs::read_to_string(self.dir.path().join("messages")).unwrap_or_default();
            let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
            match whole.lines().map(str::to_owned).collect::<Vec<_>>() {
                lines if lines.len() >= count => Ok(lines),
                lines => Err(format!("{lines:?}")),
            }
        })
    }
}

impl Drop for SyslogNg {
    fn drop(&mut self) {
        // It is reaped, even if it has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A listener whose connections the test serves itself.
pub struct Listener(TcpListener);

impl Default for Listener {
    fn default() -> Self {
        Self::at(0)
    }
}

impl Listener {
    /// Listens on a port of 127.0.0.1; 0: on a free one.
    ///
    /// # Panics
    /// When it is taken.
    pub fn at(port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).expect("a free port");
        listener.set_nonblocking(true).expect("a listener");
        Self(listener)
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.0.local_addr().expect("a listener").port()
    }

    /// The next connection.
    ///
    /// # Panics
    /// When none comes.
    pub fn accept(&self) -> TcpStream {
        let (stream, _) = wait_for(PATIENCE, "a connection", || {
            self.0.accept().map_err(|error| error.to_string())
        });
        stream.set_nonblocking(false).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a connection");
        stream
    }
}

/// Reads `count` records that end with `end`, without it.
///
/// # Errors
/// The stream ends, or nothing comes, before that.
pub fn read_records(stream: &mut impl Read, end: u8, count: usize) -> io::Result<Vec<Vec<u8>>> {
    let mut records = vec![Vec::new()];
    let mut byte = [0];
    while records.len() <= count {
        stream.read_exact(&mut byte)?;
        match records.last_mut() {
            Some(record) if byte[0] != end => record.push(byte[0]),
            _ => records.push(Vec::new()),
        }
    }
    records.pop();
    Ok(records)
}
