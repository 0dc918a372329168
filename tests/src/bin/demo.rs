//! The demo: a real nginx with the module before a small application, and a stand-in for Tirreno
//! that prints each event as it arrives.

use std::error::Error;
use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use lexopt::prelude::*;
use tirreno_tests::backend::Backend;
use tirreno_tests::client;
use tirreno_tests::sensor::{DEFAULT_KEY, Sensor, SensorOptions};

const USAGE: &str = "\
Usage: demo --nginx PATH --module PATH [--port PORT] [--smoke]

  --nginx PATH   the nginx binary
  --module PATH  the module built for it
  --port PORT    where nginx listens on 127.0.0.1 [8080]
  --smoke        make some requests, show their events, and end
";

/// How long nginx may take to listen, and events to arrive.
const PATIENCE: Duration = Duration::from_secs(20);

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() {
    if let Err(error) = run() {
        eprintln!("demo: {error}");
        std::process::exit(1);
    }
}

struct Options {
    nginx: PathBuf,
    module: PathBuf,
    port: u16,
    smoke: bool,
}

fn options() -> Result<Option<Options>> {
    let (mut nginx, mut module, mut port, mut smoke) = (None, None, 8080, false);
    let mut arguments = lexopt::Parser::from_env();
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("nginx") => nginx = Some(arguments.value()?.into()),
            Long("module") => module = Some(arguments.value()?.into()),
            Long("port") => port = arguments.value()?.parse()?,
            Long("smoke") => smoke = true,
            Long("help") => return Ok(None),
            _ => return Err(argument.unexpected().into()),
        }
    }
    match (nginx, module) {
        (Some(nginx), Some(module)) => Ok(Some(Options { nginx, module, port, smoke })),
        _ => Ok(None),
    }
}

fn run() -> Result<()> {
    let Some(options) = options()? else {
        print!("{USAGE}");
        return Ok(());
    };
    if TcpStream::connect(("127.0.0.1", options.port)).is_ok() {
        return Err(format!("port {} of 127.0.0.1 is in use, try --port", options.port).into());
    }
    let sensor = Sensor::try_start(SensorOptions {
        observer: Some(Box::new(|event| {
            // Nobody reads any more: nginx's end follows below.
            let _ = writeln!(io::stdout(), "event  {}", event.to_line());
        })),
        ..Default::default()
    })?;
    let application = Backend::start_on(None)?;
    let mut nginx = start(&options, &sensor, &application)?;
    let result =
        if options.smoke { smoke(options.port, &sensor) } else { watch(&options, &mut nginx) };
    // nginx may have ended by itself.
    let _ = Command::new("kill").arg(nginx.id().to_string()).status();
    nginx.wait()?;
    result
}

fn start(options: &Options, sensor: &Sensor, application: &Backend) -> Result<Child> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("../nginx-conf").canonicalize()?;
    let prefix = std::env::temp_dir().join(format!("ngx-tirreno-demo-{}", options.port));
    fs::create_dir_all(&prefix)?;
    let key = prefix.join("tirreno.key");
    fs::write(&key, format!("{DEFAULT_KEY}\n"))?;
    fs::set_permissions(&key, Permissions::from_mode(0o600))?;
    let configuration = fs::read_to_string(here.join("demo.conf"))?
        .replace("@MODULE@", &options.module.display().to_string())
        .replace("@PREFIX@", &prefix.display().to_string())
        .replace("@PAGE@", &here.join("demo.html").display().to_string())
        .replace("@SENSOR@", &sensor.port().to_string())
        .replace("@APP@", &application.address())
        .replace("@PORT@", &options.port.to_string());
    let file = prefix.join("nginx.conf");
    fs::write(&file, configuration)?;
    let log = prefix.join("error.log");
    let mut nginx = Command::new(&options.nginx)
        .arg("-p")
        .arg(&prefix)
        .arg("-c")
        .arg(&file)
        .arg("-e")
        .arg(&log)
        .spawn()
        .map_err(|error| format!("{} cannot be started: {error}", options.nginx.display()))?;
    let until = Instant::now() + PATIENCE;
    while TcpStream::connect(("127.0.0.1", options.port)).is_err() {
        if nginx.try_wait()?.is_some() || Instant::now() > until {
            return Err(format!("nginx did not start, see {}", log.display()).into());
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(nginx)
}

fn watch(options: &Options, nginx: &mut Child) -> Result<()> {
    let port = options.port;
    println!(
        "nginx listens on http://127.0.0.1:{port}/ and records who does what. Open that page, or:

  curl -b MMUSERID=alice http://127.0.0.1:{port}/town-square
  curl -b MMUSERID=alice -A 'x&userName=victim' 'http://127.0.0.1:{port}/search?q=1%2B1'
  curl http://127.0.0.1:{port}/tirreno-status

Each event is shown here as it is delivered. Ctrl-C ends the demo.
"
    );
    nginx.wait()?;
    Ok(())
}

/// Method, URL and headers.
type Request<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)]);

fn smoke(port: u16, sensor: &Sensor) -> Result<()> {
    let browser = ("User-Agent", "Mozilla/5.0 (X11; Linux x86_64) Firefox/145.0");
    let requests: [Request<'_>; 5] = [
        (
            "GET",
            "/town-square",
            &[browser, ("Cookie", "MMUSERID=alice"), ("Accept-Language", "en")],
        ),
        ("POST", "/api/v4/posts?status=201", &[browser, ("Cookie", "MMUSERID=alice")]),
        ("GET", "/search?q=1%2B1&p=%C3%A9", &[browser, ("Cookie", "MMUSERID=bob")]),
        (
            "GET",
            "/missing?status=404",
            &[
                ("User-Agent", "x&userName=victim&ipAddress=192.0.2.1"),
                ("Referer", "http://127.0.0.1/?a=1&b=100%25"),
                ("Cookie", "MMUSERID=mallory"),
            ],
        ),
        ("GET", "/nobody-is-logged-in", &[browser]),
    ];
    for (method, path, headers) in requests {
        let response = client::Connection::open(([127, 0, 0, 1], port).into())?
            .request(method, path, headers, b"")?;
        println!("{} {method} {path}", response.status);
    }
    // All but the last have a user.
    let expected = requests.len() - 1;
    let stored = sensor
        .wait_stored(expected, PATIENCE)
        .map_err(|_| format!("{} of {expected} events arrived", sensor.stored_count()))?;
    if stored.iter().any(|event| event.user_name == "victim") {
        return Err("an event was recorded under the wrong user".into());
    }
    println!("{} requests made, {} events delivered", requests.len(), stored.len());
    Ok(())
}
