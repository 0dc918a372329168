//! A real Nextcloud behind a real nginx with the module: makes requests as its clients do, and compares what is
//! recorded with what is expected. `ci/applications/nextcloud` starts Nextcloud and runs this.

// A table: one line an action.
#[rustfmt::skip]
mod actions;
mod report;
mod run;

use std::error::Error;
use std::process::ExitCode;

use tirreno_tests::application::{self, Options};
use tirreno_tests::sensor::{Sensor, SensorOptions};

use run::Run;

const USAGE: &str = "\
Usage: nextcloud --nginx PATH --module PATH --root DIRECTORY --php SOCKET

  --nginx PATH      the nginx binary
  --module PATH     the module built for it
  --root DIRECTORY  the code of a Nextcloud that was installed with the account \"admin\" alone
  --php SOCKET      where PHP-FPM listens

It prints a table of the actions as Markdown, and fails where something is recorded otherwise than expected.
";

fn main() -> ExitCode {
    application::main("nextcloud", USAGE, (&["nginx", "module", "root", "php"], &[]), run)
}

/// Whether all was as expected.
fn run(options: &Options) -> Result<bool, Box<dyn Error>> {
    let sensor = Sensor::start(SensorOptions::default());
    let mut run = Run::start(options, &sensor);
    actions::all(&mut run);
    Ok(report::print(&run, &sensor))
}
