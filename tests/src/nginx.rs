//! A real nginx in a directory of its own.
//!
//! The binary comes from the environment variable `TEST_NGINX_BINARY`, the module from
//! `TEST_NGINX_MODULE`; `ci/test` sets both. With `TEST_NGINX_KEEP` set, the directories stay.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::{self, File, Permissions};
use std::net::TcpStream;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;
use std::{env, io, thread};

pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process};
use tempfile::TempDir;

use crate::wait::{wait_for, wait_until};
use crate::{client, ports};

/// What stands for a module that nginx was built with.
const INSIDE: &str = "static";

/// How long nginx may take to start, reload or stop before a test fails.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long a dropped nginx may take to stop before it is killed.
const DROP_PATIENCE: Duration = Duration::from_secs(5);

/// How much of the error log a failing test prints, lines.
const TAIL: usize = 60;

/// nginx's configuration, in parts.
///
/// In every text, `%PORT%` and `%PORT1%` to `%PORT9%` are free ports of 127.0.0.1, `%PREFIX%` is
/// nginx's directory, `%SENSOR%` the URL given with [`Builder::sensor`], and `%NAME%` whatever
/// [`Builder::var`] says.
#[derive(Clone)]
pub struct Builder {
    binary: Option<PathBuf>,
    module: Option<PathBuf>,
    load_module: bool,
    master_process: bool,
    daemon: bool,
    workers: usize,
    user: Option<String>,
    log_level: String,
    main: String,
    events: String,
    http: String,
    vars: BTreeMap<String, String>,
    files: Vec<(String, String)>,
    env: Vec<(String, String)>,
}

impl Builder {
    fn new() -> Self {
        Self {
            binary: None,
            module: None,
            load_module: true,
            master_process: true,
            daemon: false,
            workers: 1,
            user: None,
            log_level: "info".to_owned(),
            main: String::new(),
            events: String::new(),
            http: String::new(),
            vars: BTreeMap::new(),
            files: Vec::new(),
            env: Vec::new(),
        }
    }

    /// The nginx binary, instead of `TEST_NGINX_BINARY`.
    pub fn binary(mut self, path: impl Into<PathBuf>) -> Self {
        self.binary = Some(path.into());
        self
    }

    /// The module, instead of `TEST_NGINX_MODULE`.
    pub fn module(mut self, path: impl Into<PathBuf>) -> Self {
        self.module = Some(path.into());
        self
    }

    /// nginx without the module.
    pub fn without_module(mut self) -> Self {
        self.load_module = false;
        self
    }

    /// One process that does everything: `master_process off`.
    pub fn single_process(mut self) -> Self {
        self.master_process = false;
        self
    }

    /// `daemon on`, as [`Nginx::usr2`] needs it: nginx ignores USR2 while its parent lives.
    pub fn daemon(mut self) -> Self {
        self.daemon = true;
        self
    }

    /// `worker_processes`; 1 unless told otherwise.
    pub fn workers(mut self, count: usize) -> Self {
        self.workers = count;
        self
    }

    /// The workers' user, such as `nobody nogroup`; otherwise they stay what the test is.
    pub fn user(mut self, user: &str) -> Self {
        self.user = Some(user.to_owned());
        self
    }

    /// The error log's level; `info` unless told otherwise.
    pub fn log_level(mut self, level: &str) -> Self {
        level.clone_into(&mut self.log_level);
        self
    }

    /// Adds text at the main level.
    pub fn main(mut self, text: &str) -> Self {
        add(&mut self.main, text);
        self
    }

    /// Adds text to `events {}`.
    pub fn events(mut self, text: &str) -> Self {
        add(&mut self.events, text);
        self
    }

    /// Adds text to `http {}`; whole `server {}` blocks too.
    pub fn http(mut self, text: &str) -> Self {
        add(&mut self.http, text);
        self
    }

    /// Adds a `server {}` that listens on `127.0.0.1:%PORT%`, with `text` inside.
    pub fn server(self, text: &str) -> Self {
        self.http(&format!("server {{\nlisten 127.0.0.1:%PORT%;\n{text}\n}}"))
    }

    /// Forgets the text of `http {}`, for [`Nginx::reconfigure`].
    pub fn clear_http(mut self) -> Self {
        self.http.clear();
        self
    }

    /// What `%SENSOR%` stands for.
    pub fn sensor(self, url: &str) -> Self {
        self.var("SENSOR", url)
    }

    /// What `%NAME%` stands for.
    pub fn var(mut self, name: &str, value: &str) -> Self {
        self.vars.insert(name.to_owned(), value.to_owned());
        self
    }

    /// A file below nginx's directory, readable by its owner only; placeholders are replaced.
    pub fn file(mut self, name: &str, text: &str) -> Self {
        self.files.push((name.to_owned(), text.to_owned()));
        self
    }

    /// A variable in the environment nginx starts with.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Writes the configuration and starts nothing, for [`Nginx::test`] and [`Nginx::start`].
    pub fn build(self) -> Nginx {
        let prefix = tempfile::Builder::new()
            .prefix("nginx-test-")
            .tempdir()
            .expect("a temporary directory");
        // The workers may be another user.
        fs::set_permissions(prefix.path(), Permissions::from_mode(0o755))
            .expect("the temporary directory is ours");
        fs::create_dir(prefix.path().join("logs")).expect("a directory for logs");
        let nginx = Nginx {
            builder: self,
            prefix: Prefix(Some(prefix)),
            ports: (0..10).map(|_| ports::free_port()).collect(),
            child: None,
            masters: Vec::new(),
        };
        nginx.write_files();
        nginx
    }

    /// Writes the configuration and starts nginx.
    ///
    /// # Panics
    /// When nginx does not start: with what it said.
    pub fn start(self) -> Nginx {
        let mut nginx = self.build();
        nginx.start();
        nginx
    }
}

fn add(text: &mut String, more: &str) {
    text.push_str(more);
    text.push('\n');
}

/// A running, or stopped, nginx. Dropping it stops every process it started; when the test
/// panics, the end of the error log is printed first.
pub struct Nginx {
    builder: Builder,
    prefix: Prefix,
    ports: Vec<u16>,
    /// The first master, unless it is a daemon.
    child: Option<Child>,
    /// All masters, the current one last.
    masters: Vec<Process>,
}

impl Nginx {
    /// A configuration to begin with: one worker, the module loaded, `daemon off`.
    pub fn builder() -> Builder {
        Builder::new()
    }

    /// nginx's directory.
    pub fn prefix(&self) -> &Path {
        self.prefix.path()
    }

    /// The port `%PORT%`.
    pub fn port(&self) -> u16 {
        self.ports[0]
    }

    /// The port `%PORTn%`, 1 to 9.
    pub fn port_n(&self, n: usize) -> u16 {
        self.ports[n]
    }

    /// Runs `nginx -t`: whether it succeeded, and what it printed.
    pub fn test(&self) -> (bool, String) {
        let output = self.command().arg("-t").output().expect("nginx runs");
        (output.status.success(), lossy(&output.stderr) + &lossy(&output.stdout))
    }

    /// Starts nginx and waits until all its workers have initialized.
    ///
    /// # Panics
    /// When nginx does not start: with what it said.
    pub fn start(&mut self) {
        self.start_with_output(self.log_file("stdout.log"));
    }

    fn log_file(&self, name: &str) -> File {
        let path = self.prefix().join("logs").join(name);
        File::options().create(true).append(true).open(path).expect("a log file")
    }

    /// As [`start`](Self::start), with another standard output than a file.
    ///
    /// # Panics
    /// When nginx does not start: with what it said.
    pub fn start_with_output(&mut self, output: impl Into<Stdio>) {
        assert!(!self.is_running(), "nginx runs already");
        let mut child = self
            .command()
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(self.log_file("stderr.log"))
            .spawn()
            .expect("nginx runs");
        if self.builder.daemon {
            child.wait().expect("our own child");
        } else {
            self.masters.push(Process::of(child.id()).expect("our own child"));
        }
        let mut ended = |nginx: &Self| {
            if matches!(child.try_wait(), Ok(Some(status)) if !status.success()) {
                panic!("nginx did not start.\n{}\n{}", nginx.output(), nginx.log_tail());
            }
        };
        let pid_file = self.prefix().join("nginx.pid");
        let master = wait_for(PATIENCE, "nginx's pid file", || {
            ended(self);
            read_pid(&pid_file).and_then(Process::of).ok_or_else(|| self.log_tail())
        });
        if self.builder.daemon {
            self.masters.push(master);
        } else {
            ended(self);
            self.child = Some(child);
        }
        self.wait_workers(master.pid, &BTreeSet::new());
    }

    /// Whether the current master runs.
    pub fn is_running(&self) -> bool {
        self.masters.last().is_some_and(Process::is_alive)
    }

    /// The current master's process id.
    ///
    /// # Panics
    /// Before the start.
    pub fn master_pid(&self) -> u32 {
        self.masters.last().expect("nginx was started").pid
    }

    /// The current master's workers that take connections. With [`Builder::single_process`], the
    /// one process.
    pub fn workers(&self) -> Vec<u32> {
        self.workers_of(self.master_pid())
    }

    /// The workers of the master `master` that take connections.
    pub fn workers_of(&self, master: u32) -> Vec<u32> {
        if !self.builder.master_process {
            return vec![master];
        }
        children_titled(master, |title| title == "nginx: worker process")
    }

    /// The current master's workers that are shutting down.
    pub fn exiting_workers(&self) -> Vec<u32> {
        children_titled(self.master_pid(), |title| {
            title == "nginx: worker process is shutting down"
        })
    }

    /// The current master's children of every kind, cache manager and a new binary's master
    /// included.
    pub fn children(&self) -> Vec<u32> {
        children_titled(self.master_pid(), |_| true)
    }

    /// The current master's children that have ended and that it has not waited for.
    pub fn zombies(&self) -> Vec<u32> {
        children(self.master_pid(), |stat| stat.state == 'Z')
    }

    /// Changes the configuration on disk; [`Nginx::reload`] makes nginx read it.
    pub fn reconfigure(&mut self, change: impl FnOnce(Builder) -> Builder) {
        self.builder = change(self.builder.clone());
        self.write_files();
    }

    /// Reloads and waits until new workers have taken over; old ones may still be shutting down.
    ///
    /// # Panics
    /// When the configuration is refused.
    pub fn reload(&self) {
        let old: BTreeSet<u32> = self.workers().into_iter().collect();
        let refused = || self.error_log().matches("[emerg]").count();
        let before = refused();
        self.signal(Signal::HUP);
        wait_for(PATIENCE, "the reload", || {
            assert!(refused() == before, "the reload was refused.\n{}", self.log_tail());
            if self.has_workers(self.master_pid(), &old) { Ok(()) } else { Err(self.log_tail()) }
        });
    }

    /// Upgrades the binary in place (USR2) and waits for the new master's workers. The old master
    /// and its workers go on until they are told to stop. Returns the new master's process id.
    ///
    /// # Panics
    /// Without [`Builder::daemon`], and when the new master does not come up.
    pub fn usr2(&mut self) -> u32 {
        assert!(self.builder.daemon, "nginx ignores USR2 while its parent lives: use daemon()");
        let old = self.master_pid();
        self.signal(Signal::USR2);
        let pid_file = self.prefix().join("nginx.pid");
        let master = wait_for(PATIENCE, "the new master", || {
            read_pid(&pid_file)
                .filter(|&pid| pid != old)
                .and_then(Process::of)
                .ok_or_else(|| self.log_tail())
        });
        self.masters.push(master);
        self.wait_workers(master.pid, &BTreeSet::new());
        master.pid
    }

    /// Sends `signal` to the current master.
    pub fn signal(&self, signal: Signal) {
        send(self.master_pid(), signal);
    }

    /// Sends `signal` to the worker, or another process of this nginx, `pid`.
    ///
    /// # Panics
    /// When it is none of this nginx's processes.
    pub fn signal_worker(&self, pid: u32, signal: Signal) {
        let ours = self.processes();
        assert!(ours.iter().any(|ours| ours.pid == pid), "{pid} is no process of this nginx");
        send(pid, signal);
    }

    /// Stops nginx after it has served what it has begun (QUIT), and waits for its end.
    pub fn quit(&mut self) -> Option<ExitStatus> {
        self.stop(Signal::QUIT)
    }

    /// Stops nginx at once (TERM), and waits for its end.
    pub fn term(&mut self) -> Option<ExitStatus> {
        self.stop(Signal::TERM)
    }

    /// Kills the master (KILL), which leaves its workers, and waits for its end.
    pub fn kill(&mut self) -> Option<ExitStatus> {
        self.stop(Signal::KILL)
    }

    /// Waits until the process `pid` has ended.
    pub fn wait_gone(&self, pid: u32) {
        let Some(process) = Process::of(pid) else { return };
        wait_until(PATIENCE, &format!("the end of process {pid}"), || !process.is_alive());
    }

    /// How many threads the process has.
    pub fn threads(&self, pid: u32) -> usize {
        self.thread_names(pid).len()
    }

    /// The names of the process's threads, its main thread's first.
    pub fn thread_names(&self, pid: u32) -> Vec<String> {
        let names = of_threads(pid, "comm").into_iter();
        names.map(|name| name.trim_end().to_owned()).collect()
    }

    /// Whether all threads of the process are stopped (STOP).
    pub fn is_stopped(&self, pid: u32) -> bool {
        // The state follows the name, which is in parentheses.
        of_threads(pid, "stat").iter().all(|stat| stat.contains(") T "))
    }

    /// The process's resident memory without files and shared memory, bytes.
    pub fn rss_anon(&self, pid: u32) -> u64 {
        status_bytes(pid, "RssAnon:")
    }

    /// How many descriptors the process has open.
    pub fn open_files(&self, pid: u32) -> usize {
        numbered(&PathBuf::from(format!("/proc/{pid}/fd"))).len()
    }

    /// What nginx's processes have in shared memory.
    pub fn shared_memory(&self) -> Vec<u8> {
        let process = Path::new("/proc").join(self.master_pid().to_string());
        let maps = fs::read_to_string(process.join("maps")).expect("nginx runs");
        let memory = File::open(process.join("mem")).expect("nginx's memory");
        let mut all = Vec::new();
        for map in maps.lines().filter(|line| line.contains(" rw-s ")) {
            let (start, rest) = map.split_once('-').expect("a range");
            let end = rest.split(' ').next().expect("a range");
            let [start, end] = [start, end].map(|n| u64::from_str_radix(n, 16).expect("a number"));
            let mut bytes = vec![0; (end - start) as usize];
            memory.read_exact_at(&mut bytes, start).expect("nginx's memory");
            all.append(&mut bytes);
        }
        assert!(!all.is_empty(), "no shared memory in {maps}");
        all
    }

    /// All that nginx has left below `directory` and in shared memory, each with its name.
    pub fn remains(&self, directory: &Path) -> Vec<(String, Vec<u8>)> {
        let mut remains = vec![("shared memory".to_owned(), self.shared_memory())];
        let mut directories = vec![directory.to_owned()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).expect("nginx's directory") {
                let path = entry.expect("nginx's directory").path();
                if path.is_dir() {
                    directories.push(path);
                } else if let Ok(bytes) = fs::read(&path) {
                    // Others, such as a journal, are gone meanwhile.
                    remains.push((path.display().to_string(), bytes));
                }
            }
        }
        remains
    }

    /// The error log.
    pub fn error_log(&self) -> String {
        let log = fs::read(self.prefix().join("logs/error.log"));
        log.map(|log| lossy(&log)).unwrap_or_default()
    }

    /// What nginx wrote to standard output and standard error.
    pub fn output(&self) -> String {
        ["stdout.log", "stderr.log"]
            .map(|name| fs::read(self.prefix().join("logs").join(name)).unwrap_or_default())
            .map(|log| lossy(&log))
            .concat()
    }

    /// Waits until the error log contains `text`, and returns the first line that does.
    pub fn wait_log(&self, text: &str) -> String {
        wait_for(PATIENCE, &format!("the log to say {text:?}"), || {
            let log = self.error_log();
            let line = log.lines().find(|line| line.contains(text)).map(str::to_owned);
            line.ok_or_else(|| self.log_tail())
        })
    }

    /// The error log's lines that tell of a process ended by a signal other than those in
    /// `expected`, such as a crash.
    pub fn crashes(&self, expected: &[Signal]) -> Vec<String> {
        let expected = |line: &str| {
            expected.iter().any(|signal| {
                let number = signal.as_raw();
                line.ends_with(&format!("exited on signal {number}"))
                    || line.contains(&format!("exited on signal {number} "))
            })
        };
        self.error_log()
            .lines()
            .filter(|line| line.contains("exited on signal") && !expected(line))
            .map(str::to_owned)
            .collect()
    }

    /// GETs `path` from `%PORT%` and reads the answer as JSON.
    ///
    /// # Panics
    /// When that fails.
    pub fn status(&self, path: &str) -> serde_json::Value {
        let response = client::get(self.port(), path, &[])
            .unwrap_or_else(|error| panic!("GET {path}: {error}\n{}", self.log_tail()));
        assert_eq!(response.status, 200, "GET {path}: {}", response.text());
        serde_json::from_slice(&response.body)
            .unwrap_or_else(|error| panic!("GET {path}: {error}: {}", response.text()))
    }

    fn stop(&mut self, signal: Signal) -> Option<ExitStatus> {
        let master = *self.masters.last().expect("nginx was started");
        if master.is_alive() {
            send(master.pid, signal);
        }
        wait_for(PATIENCE, "nginx to stop", || {
            if master.is_alive() { Err(self.log_tail()) } else { Ok(()) }
        });
        // A daemon's status is its parent's to know.
        self.child.take().map(|mut child| child.wait().expect("our own child"))
    }

    /// Every process that has a file of this nginx's directory open: also a successor that nobody
    /// noted, and the orphans of a killed master.
    fn processes(&self) -> Vec<Process> {
        let holds_ours = |pid: u32| {
            numbered(&PathBuf::from(format!("/proc/{pid}/fd"))).into_iter().any(|fd| {
                fs::read_link(format!("/proc/{pid}/fd/{fd}"))
                    .is_ok_and(|file| file.starts_with(self.prefix()))
            })
        };
        numbered(Path::new("/proc"))
            .into_iter()
            .filter(|&pid| title(pid).contains("nginx") && holds_ours(pid))
            .filter_map(Process::of)
            .filter(Process::is_alive)
            .collect()
    }

    fn wait_workers(&self, master: u32, old: &BTreeSet<u32>) {
        wait_for(PATIENCE, "nginx's workers", || {
            if self.has_workers(master, old) { Ok(()) } else { Err(self.log_tail()) }
        });
    }

    /// Whether all workers run and none is in `old`. nginx names a worker when its modules have
    /// initialized; the single process is named nothing, but listens before it initializes.
    fn has_workers(&self, master: u32, old: &BTreeSet<u32>) -> bool {
        if !self.builder.master_process {
            return TcpStream::connect(("127.0.0.1", self.port())).is_ok();
        }
        let workers = self.workers_of(master);
        workers.len() == self.builder.workers && workers.iter().all(|pid| !old.contains(pid))
    }

    fn log_tail(&self) -> String {
        let log = self.error_log();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(TAIL)..].join("\n");
        format!("The end of nginx's error log:\n{tail}")
    }

    fn command(&self) -> Command {
        let binary = self.builder.binary.clone().unwrap_or_else(|| from_env("TEST_NGINX_BINARY"));
        let mut command = Command::new(binary);
        // -e, before the configuration is read: a distribution's default lies outside.
        command
            .arg("-p")
            .arg(self.prefix())
            .arg("-c")
            .arg(self.prefix().join("nginx.conf"))
            .arg("-e")
            .arg(self.prefix().join("logs/error.log"))
            .envs(self.builder.env.iter().map(|(name, value)| (name, value)));
        command
    }

    fn write_files(&self) {
        write(&self.prefix().join("nginx.conf"), &self.expand(&self.configuration()), 0o600);
        for (name, text) in &self.builder.files {
            let path = self.prefix().join(name);
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent).expect("a directory below nginx's own");
            }
            write(&path, &self.expand(text), 0o600);
        }
    }

    fn configuration(&self) -> String {
        let builder = &self.builder;
        let switch = |on: bool| if on { "on" } else { "off" };
        let mut text = String::new();
        let mut line = |directive: &str| add(&mut text, &format!("{directive};"));
        line(&format!("daemon {}", switch(builder.daemon)));
        line(&format!("master_process {}", switch(builder.master_process)));
        line(&format!("worker_processes {}", builder.workers));
        line("pid %PREFIX%/nginx.pid");
        line("lock_file %PREFIX%/nginx.lock");
        line(&format!("error_log %PREFIX%/logs/error.log {}", builder.log_level));
        // Without it, root's workers become the binary's default user.
        let root = rustix::process::geteuid().is_root();
        if let Some(user) = builder.user.as_deref().or(root.then_some("root")) {
            line(&format!("user {user}"));
        }
        if builder.load_module {
            let module = builder.module.clone().unwrap_or_else(|| from_env("TEST_NGINX_MODULE"));
            if module.as_os_str() != INSIDE {
                line(&format!("load_module {}", module.display()));
            }
        }
        add(&mut text, &builder.main);
        add(&mut text, "events {");
        if !builder.events.contains("worker_connections") {
            add(&mut text, "worker_connections 1024;");
        }
        add(&mut text, &builder.events);
        add(&mut text, "}\nhttp {");
        // A distribution's defaults lie outside the directory.
        if !builder.http.contains("access_log") {
            add(&mut text, "access_log off;");
        }
        for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{kind}_temp_path %PREFIX%/{kind};");
        }
        add(&mut text, &builder.http);
        add(&mut text, "}");
        text
    }

    fn expand(&self, text: &str) -> String {
        let mut text = text.replace("%PREFIX%", &self.prefix().display().to_string());
        for (n, port) in self.ports.iter().enumerate() {
            let name = if n == 0 { "%PORT%".to_owned() } else { format!("%PORT{n}%") };
            text = text.replace(&name, &port.to_string());
        }
        for (name, value) in &self.builder.vars {
            text = text.replace(&format!("%{name}%"), value);
        }
        text
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}\n{}", self.output(), self.log_tail());
        }
        let mut processes = self.processes();
        // Masters first, so that they start no successors for the workers.
        processes.sort_by_key(|process| !title(process.pid).starts_with("nginx: master"));
        for process in &processes {
            send(process.pid, Signal::TERM);
        }
        let deadline = std::time::Instant::now() + DROP_PATIENCE;
        while processes.iter().any(Process::is_alive) && std::time::Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
        for process in processes.iter().filter(|process| process.is_alive()) {
            eprintln!("nginx process {} did not stop: killed", process.pid);
            send(process.pid, Signal::KILL);
        }
        if let Some(mut child) = self.child.take() {
            // Killed above at the latest.
            let _ = child.wait();
        }
    }
}

/// nginx's directory, kept on request.
struct Prefix(Option<TempDir>);

impl Prefix {
    fn path(&self) -> &Path {
        self.0.as_ref().expect("taken by drop only").path()
    }
}

impl Drop for Prefix {
    fn drop(&mut self) {
        if env::var_os("TEST_NGINX_KEEP").is_some()
            && let Some(directory) = self.0.take()
        {
            eprintln!("kept {}", directory.keep().display());
        }
    }
}

/// A process, safe against its number being used again.
#[derive(Clone, Copy, PartialEq)]
struct Process {
    pid: u32,
    /// In clock ticks since boot.
    started: u64,
}

/// What /proc/PID/stat tells.
struct Stat {
    state: char,
    parent: u32,
    started: u64,
}

impl Process {
    fn of(pid: u32) -> Option<Self> {
        Stat::of(pid).map(|stat| Self { pid, started: stat.started })
    }

    /// False also for a zombie: a daemon's parent may be one that never waits.
    fn is_alive(&self) -> bool {
        Stat::of(self.pid).is_some_and(|stat| stat.started == self.started && stat.state != 'Z')
    }
}

impl Stat {
    fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name, in parentheses, may contain anything.
        let (_, fields) = stat.rsplit_once(") ")?;
        let fields: Vec<&str> = fields.split(' ').collect();
        Some(Self {
            state: fields.first()?.chars().next()?,
            parent: fields.get(1)?.parse().ok()?,
            started: fields.get(19)?.parse().ok()?,
        })
    }
}

fn children_titled(parent: u32, wanted: impl Fn(&str) -> bool) -> Vec<u32> {
    let mut pids = children(parent, |stat| stat.state != 'Z');
    pids.retain(|&pid| wanted(&title(pid)));
    pids
}

fn children(parent: u32, wanted: impl Fn(&Stat) -> bool) -> Vec<u32> {
    let mut pids = numbered(Path::new("/proc"));
    pids.retain(|&pid| Stat::of(pid).is_some_and(|stat| stat.parent == parent && wanted(&stat)));
    pids
}

/// The command line; nginx puts its processes' titles there.
fn title(pid: u32) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    lossy(&line).replace('\0', " ").trim_end().to_owned()
}

/// The numeric names in a directory of /proc.
fn numbered(directory: &Path) -> Vec<u32> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// The content of the file `name` in /proc of each thread of a process, its main thread's first. Threads that end
/// meanwhile are left out.
fn of_threads(pid: u32, name: &str) -> Vec<String> {
    let mut tasks = numbered(&PathBuf::from(format!("/proc/{pid}/task")));
    tasks.sort_unstable();
    let read = |task| fs::read_to_string(format!("/proc/{pid}/task/{task}/{name}")).ok();
    tasks.into_iter().filter_map(read).collect()
}

fn status_bytes(pid: u32, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))
        .unwrap_or_else(|error| panic!("process {pid}: {error}"));
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .and_then(|value| value.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.unwrap_or_else(|| panic!("no {name} in /proc/{pid}/status")) * 1024
}

fn read_pid(path: &Path) -> Option<u32> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// A process that has ended meanwhile needs no signal.
fn send(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a process id");
    if let Err(error) = kill_process(pid, signal)
        && error != rustix::io::Errno::SRCH
    {
        panic!("signal to process {pid:?}: {}", io::Error::from(error));
    }
}

fn write(path: &Path, text: &str, mode: u32) {
    fs::write(path, text)
        .and_then(|()| fs::set_permissions(path, Permissions::from_mode(mode)))
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Whether the nginx under test is older than 1.`minor`.
pub fn nginx_is_before(minor: u32) -> bool {
    let output =
        Command::new(from_env("TEST_NGINX_BINARY")).arg("-v").output().expect("nginx runs");
    let about = String::from_utf8_lossy(&output.stderr).into_owned();
    let found = about.split("nginx/1.").nth(1).and_then(|rest| rest.split('.').next());
    found.and_then(|found| found.parse::<u32>().ok()).expect("a version of nginx") < minor
}

fn from_env(name: &str) -> PathBuf {
    match env::var_os(name) {
        Some(path) if path == INSIDE => path.into(),
        // nginx takes a relative path from its own directory.
        Some(path) => std::path::absolute(path).expect("a path"),
        None => panic!("{name} is not set: run ci/test"),
    }
}
