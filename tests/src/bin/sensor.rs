//! The stand-in sensor as a program: prints each event that Tirreno would have stored as one line
//! of `name=value` pairs.

use std::error::Error;
use std::io::Write;
use std::net::SocketAddr;
use std::{io, process, thread};

use lexopt::prelude::*;
use tirreno_tests::sensor::{DEFAULT_KEY, Rate, Sensor, SensorOptions};

const USAGE: &str = "\
Usage: sensor [OPTIONS]

  --listen ADDRESS:PORT  where to listen [a free port of 127.0.0.1]
  --key KEY              the key to accept; may repeat [test-key]
  --rate N/S             at most N events in S seconds, then 429 [no limit]
  --close                answer 'Connection: close', as Apache does
  --help                 print this text
";

fn main() {
    if let Err(error) = run() {
        eprintln!("sensor: {error}");
        process::exit(1);
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let mut options =
        SensorOptions { keys: Vec::new(), record_requests: false, ..Default::default() };
    let mut arguments = lexopt::Parser::from_env();
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("listen") => options.listen = Some(arguments.value()?.parse::<SocketAddr>()?),
            Long("key") => options.keys.push(arguments.value()?.string()?),
            Long("rate") => options.rate = Some(arguments.value()?.parse_with(rate)?),
            Long("close") => options.close = true,
            Long("help") => {
                print!("{USAGE}");
                return Ok(());
            }
            _ => return Err(argument.unexpected().into()),
        }
    }
    if options.keys.is_empty() {
        options.keys.push(DEFAULT_KEY.to_owned());
    }
    options.observer = Some(Box::new(|event| {
        // Standard output is closed, so nobody reads the events.
        if writeln!(io::stdout(), "{}", event.to_line()).is_err() {
            process::exit(0);
        }
    }));
    let sensor = Sensor::try_start(options).map_err(|error| format!("cannot listen: {error}"))?;
    eprintln!("listening on {}", sensor.url());
    loop {
        thread::park();
    }
}

fn rate(text: &str) -> Result<Rate, &'static str> {
    let parsed = text
        .split_once('/')
        .and_then(|(events, seconds)| Some((events.parse().ok()?, seconds.parse().ok()?)));
    match parsed {
        Some((events, seconds)) if seconds > 0 => Ok(Rate::new(events, seconds)),
        _ => Err("expected EVENTS/SECONDS"),
    }
}
