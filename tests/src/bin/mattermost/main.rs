//! A real Mattermost behind a real nginx with the module: makes requests as Mattermost's clients do, and
//! compares the records with the expected ones. `ci/applications/mattermost` starts Mattermost and this
//! program; `ci/applications/tirreno` does so with a real Tirreno instead of the stand-in.

// A table with one action a line.
#[rustfmt::skip]
mod actions;
mod day;
mod report;
mod run;

use std::error::Error;
use std::fs;
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
  --tirreno URL       records a working day of 40 users at this Tirreno, instead of all actions at a stand-in
  --key PATH          the file with the API key of that Tirreno

It prints a table of the actions as Markdown, and fails where something is recorded otherwise than expected.
";

/// The options of the command line.
#[derive(Default)]
struct Options {
    nginx: PathBuf,
    module: PathBuf,
    server: String,
    psql: Option<String>,
    audit: Option<PathBuf>,
    tirreno: Option<String>,
    key: Option<PathBuf>,
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
            Long("tirreno") => options.tirreno = Some(arguments.value()?.string()?),
            Long("key") => options.key = Some(arguments.value()?.into()),
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

/// Runs the actions, and returns whether all records were as expected.
fn run(options: &Options) -> Result<bool, Box<dyn Error>> {
    let place = |sensor, key| Place {
        nginx: options.nginx.clone(),
        module: options.module.clone(),
        server: options.server.clone(),
        psql: options.psql.clone(),
        sensor,
        key,
    };
    if let Some(url) = &options.tirreno {
        let key = options.key.as_ref().ok_or("--key is missing")?;
        let key = fs::read_to_string(key)?.trim().to_owned();
        return Ok(day::all(&mut Run::start(place(url.clone(), key))));
    }
    let sensor = Sensor::start(SensorOptions::default());
    let mut run = Run::start(place(sensor.url(), DEFAULT_KEY.to_owned()));
    actions::all(&mut run);
    Ok(report::print(&run, &sensor, options.audit.as_deref()))
}
