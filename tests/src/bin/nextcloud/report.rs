//! What was recorded, beside what was expected.

use std::collections::HashMap;
use std::fs;

use serde_json::Value;
use tirreno_tests::application::{Step, as_expected, cell, user_name};
use tirreno_tests::sensor::Sensor;

use crate::run::Run;

/// Prints the table; whether all is as expected.
pub(crate) fn print(run: &Run, sensor: &Sensor) -> bool {
    let stage = &run.stage;
    let targets = stage.settle();
    let events = stage.events(sensor);
    let evidence = evidence(run);
    let mut wrong = Vec::new();
    println!("Nextcloud {}, behind nginx with nginx-conf/presets/nextcloud.conf.\n", run.version);
    println!("| action | request | status | event | user | identity | as expected |");
    println!("|---|---|---|---|---|---|---|");
    for step in &stage.steps {
        let found = events.get(&step.case).map_or(&[][..], |events| events);
        let recorded: Vec<_> = found
            .iter()
            .map(|e| (e.event_type.clone(), user_name(&e.user_name).to_owned()))
            .collect();
        let flags: Vec<_> = found.iter().flat_map(|event| event.flagged.iter()).collect();
        let identities: Vec<_> = found
            .iter()
            .filter_map(|event| evidence.get(event.trace_id.as_deref().unwrap_or_default()))
            .map(|identity| &**identity)
            .collect();
        let good = recorded.as_slice() == step.expected.as_slice()
            && step.status.0 == step.status.1
            && flags.is_empty()
            && identities.len() == found.len();
        println!(
            "| {} | `{} {}` | {} | {} | {} | {} | {} |",
            step.what,
            step.method,
            shown(run, step),
            step.status.0,
            cell(&recorded.iter().map(|(kind, _)| &**kind).collect::<Vec<_>>()),
            cell(&recorded.iter().map(|(_, user)| &**user).collect::<Vec<_>>()),
            cell(&identities),
            as_expected(step, good),
        );
        if !good {
            wrong.push(format!("{}: {recorded:?} {identities:?} {flags:?}", step.what));
        }
    }
    stage.print_counts(&targets, &mut wrong);
    stage.print_secrets(sensor, &mut wrong);
    for line in &wrong {
        eprintln!("NOT AS EXPECTED  {line}");
    }
    wrong.is_empty()
}

/// By what the user of an event is known, by the event's id: the audit records tell.
fn evidence(run: &Run) -> HashMap<String, String> {
    let path = run.stage.nginx.prefix().join("logs/audit.log");
    let text = fs::read_to_string(path).expect("the audit records");
    let pair = |line: &str| {
        let record: Value = serde_json::from_str(line).ok()?;
        let text = |name: &str| record[name].as_str().map(str::to_owned);
        Some((text("trace_id")?, text("identity")?))
    };
    text.lines().filter_map(pair).collect()
}

/// A path without what is a secret in it, or another one in each run.
fn shown(run: &Run, step: &Step) -> String {
    let path = run.stage.secrets.iter().fold(step.path.clone(), |path, secret| {
        if secret.len() < 8 { path } else { path.replace(&**secret, "{token}") }
    });
    let is_id = |part: &str| part.len() > 1 && part.bytes().all(|b| b.is_ascii_digit());
    let part = |part: &str| match part.rsplit_once(".d") {
        Some((name, time)) if is_id(time) => format!("{name}.d{{time}}"),
        _ if is_id(part) => "{id}".to_owned(),
        _ => part.to_owned(),
    };
    path.split('/').map(part).collect::<Vec<_>>().join("/")
}
