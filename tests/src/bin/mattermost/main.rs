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
use std::path::Path;
use std::process::ExitCode;

use tirreno_tests::application::{self, Options};
use tirreno_tests::sensor::{DEFAULT_KEY, Sensor, SensorOptions};

use run::Run;

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

fn main() -> ExitCode {
    let required = &["nginx", "module", "server"];
    let optional = &["psql", "audit", "tirreno", "key"];
    application::main("mattermost", USAGE, (required, optional), run)
}

/// Runs the actions, and returns whether all records were as expected.
fn run(options: &Options) -> Result<bool, Box<dyn Error>> {
    if let Some(url) = options.get("tirreno") {
        let key = options.get("key").ok_or("--key is missing")?;
        let key = fs::read_to_string(key)?;
        return Ok(day::all(&mut Run::start(options, url, key.trim())));
    }
    let sensor = Sensor::start(SensorOptions::default());
    let mut run = Run::start(options, &sensor.url(), DEFAULT_KEY);
    actions::all(&mut run);
    Ok(report::print(&run, &sensor, options.get("audit").map(Path::new)))
}
