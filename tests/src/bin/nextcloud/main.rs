//! A real Nextcloud behind a real nginx with the module: makes requests as its clients do, and compares what is
//! recorded with what is expected. `ci/applications/nextcloud` starts Nextcloud and runs this.

// A table: one line an action.
#[rustfmt::skip]
mod actions;
mod report;
mod run;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use lexopt::prelude::*;
use tirreno_tests::sensor::{DEFAULT_KEY, Sensor, SensorOptions};

use run::{Place, Run};

const USAGE: &str = "\
Usage: nextcloud --nginx PATH --module PATH --root DIRECTORY --php SOCKET

  --nginx PATH      the nginx binary
  --module PATH     the module built for it
  --root DIRECTORY  the code of a Nextcloud that was installed with the account \"admin\" alone
  --php SOCKET      where PHP-FPM listens

It prints a table of the actions as Markdown, and fails where something is recorded otherwise than expected.
";

/// What the command line says.
#[derive(Default)]
struct Options {
    nginx: PathBuf,
    module: PathBuf,
    root: PathBuf,
    php: PathBuf,
}

fn main() -> ExitCode {
    match options().map(|options| options.is_none_or(run)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("nextcloud: {error}");
            ExitCode::FAILURE
        }
    }
}

fn options() -> Result<Option<Options>, Box<dyn Error>> {
    let mut options = Options::default();
    let mut arguments = lexopt::Parser::from_env();
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("nginx") => options.nginx = arguments.value()?.into(),
            Long("module") => options.module = arguments.value()?.into(),
            Long("root") => options.root = arguments.value()?.into(),
            Long("php") => options.php = arguments.value()?.into(),
            Long("help") => {
                print!("{USAGE}");
                return Ok(None);
            }
            _ => return Err(argument.unexpected().into()),
        }
    }
    if options.root.as_os_str().is_empty() || options.php.as_os_str().is_empty() {
        return Err("--root or --php is missing".into());
    }
    Ok(Some(options))
}

/// Whether all was as expected.
fn run(options: Options) -> bool {
    let sensor = Sensor::start(SensorOptions::default());
    let mut run = Run::start(Place {
        nginx: options.nginx,
        module: options.module,
        root: options.root,
        php: options.php,
        sensor: sensor.url(),
        key: DEFAULT_KEY.to_owned(),
    });
    actions::all(&mut run);
    report::print(&run, &sensor)
}
