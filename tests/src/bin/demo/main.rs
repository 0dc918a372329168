//! The demo: a real nginx with the module before a small application in which people sign in, and a
//! stand-in for Tirreno that prints each event as it arrives. It shows what the module does step by
//! step, checks each step, and then serves the application until it is interrupted.

mod app;
mod tour;

use std::error::Error;
use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use lexopt::prelude::*;
use tirreno_tests::backend::Backend;
use tirreno_tests::sensor::{DEFAULT_KEY, Sensor, SensorOptions};

use app::App;
use tour::Tour;

const USAGE: &str = "\
Usage: demo --nginx PATH --module PATH [--port PORT] [--smoke]

  --nginx PATH   the nginx binary
  --module PATH  the module built for it
  --port PORT    where nginx listens on 127.0.0.1 [8080]
  --smoke        end after the tour
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
    let sensor = Arc::new(Sensor::try_start(SensorOptions {
        observer: Some(Box::new(|event| {
            // Standard output is closed: nginx is stopped below.
            let _ = writeln!(io::stdout(), "event  {}", event.to_line());
        })),
        ..Default::default()
    })?);
    let app = Arc::new(App::new(Arc::clone(&sensor)));
    let application = {
        let app = Arc::clone(&app);
        Backend::answering(move |request| app.answer(request))
    };
    let prefix = prepare(&options, &sensor, &application)?;
    let mut nginx = start(&options, &prefix)?;
    let audit = prefix.join("audit/audit.log");
    let result = Tour { port: options.port, sensor, app, audit }.run();
    if result.is_ok() && !options.smoke {
        let port = options.port;
        println!("\nNow it is your turn: http://127.0.0.1:{port}/. Ctrl-C ends the demo.\n");
        nginx.wait()?;
    }
    // nginx may have ended by itself.
    let _ = Command::new("kill").arg(nginx.id().to_string()).status();
    nginx.wait()?;
    if result.is_ok() && options.smoke {
        println!("\nAll of it is as it should be.");
    }
    result
}

/// Writes the configuration and the key, and returns their directory.
fn prepare(options: &Options, sensor: &Sensor, application: &Backend) -> Result<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("../nginx-conf").canonicalize()?;
    let prefix = std::env::temp_dir().join(format!("ngx-tirreno-demo-{}", options.port));
    // The files of an earlier run would be shown as this run's.
    let _ = fs::remove_dir_all(&prefix);
    fs::create_dir_all(&prefix)?;
    // If root starts it, nginx's workers are another user.
    let audit = prefix.join("audit");
    fs::create_dir(&audit)?;
    fs::set_permissions(&audit, Permissions::from_mode(0o777))?;
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
    fs::write(prefix.join("nginx.conf"), configuration)?;
    Ok(prefix)
}

fn start(options: &Options, prefix: &Path) -> Result<Child> {
    let log = prefix.join("error.log");
    let mut nginx = Command::new(&options.nginx)
        .arg("-p")
        .arg(prefix)
        .arg("-c")
        .arg(prefix.join("nginx.conf"))
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
