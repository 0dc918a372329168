//! A real Mattermost behind a real nginx with the module: makes requests as its clients do, and compares what is
//! recorded with what is expected. `ci/applications/mattermost` starts Mattermost and runs this.

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
Usage: mattermost --nginx PATH --module PATH --server HOST:PORT [OPTIONS]

  --nginx PATH        the nginx binary
  --module PATH       the module built for it
  --server HOST:PORT  where a Mattermost without accounts listens
  --psql COMMAND      prints the rows of a statement in Mattermost's database, its last argument
  --audit PATH        the audit log that this Mattermost writes

It prints a table of the actions as Markdown, and fails where something is recorded otherwise than expected.
";

/// What the command line says.
#[derive(Default)]
struct Options {
    nginx: PathBuf,
    module: PathBuf,
    server: String,
    psql: Option<String>,
    audit: Option<PathBuf>,
}

fn main() -> ExitCode {
    match options().and_then(|options| options.map_or(Ok(true), |options| run(&options))) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("mattermost: {error}");
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
            Long("server") => options.server = arguments.value()?.string()?,
            Long("psql") => options.psql = Some(arguments.value()?.string()?),
            Long("audit") => options.audit = Some(arguments.value()?.into()),
            Long("help") => {
                print!("{USAGE}");
                return Ok(None);
            }
            _ => return Err(argument.unexpected().into()),
        }
    }
    if options.server.is_empty() {
        return Err("--server is missing".into());
    }
    Ok(Some(options))
}

/// Whether all was as expected.
fn run(options: &Options) -> Result<bool, Box<dyn Error>> {
    let sensor = Sensor::start(SensorOptions::default());
    let mut run = Run::start(Place {
        nginx: options.nginx.clone(),
        module: options.module.clone(),
        server: options.server.clone(),
        psql: options.psql.clone(),
        sensor: sensor.url(),
        key: DEFAULT_KEY.to_owned(),
    });
    actions::all(&mut run);
    Ok(report::print(&run, &sensor, options.audit.as_deref()))
}
