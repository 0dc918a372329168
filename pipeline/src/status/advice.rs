//! What a state means, and what an administrator can do about it, in words.

use super::Target;
use crate::shm::zone::Fault;

/// A state in a few words, for a heading.
pub(super) fn state(state: &str) -> &'static str {
    match state {
        "ok" => "delivering",
        "retrying" => "not delivered, trying again",
        "paused" => "paused",
        "degraded" => "behind: some events are in memory only",
        _ => "waiting for another process",
    }
}

/// What to do about a target that is not well.
pub(super) fn target(target: &Target) -> Option<&'static str> {
    if target.is_well() {
        return None;
    }
    if let Some((fault, _)) = target.totals.last_fault {
        return Some(of_fault(fault, target));
    }
    Some(match target.state() {
        "degraded" => "The disk does not keep up. Look at its load and its free space.",
        "waiting" => "Another nginx has the file or the spool. Is an old one still stopping?",
        _ => "nginx's error log tells more.",
    })
}

fn of_fault(fault: Fault, target: &Target) -> &'static str {
    match fault {
        Fault::KeyRefused(_) if target.has_spool => {
            "Tirreno does not know the API key. Compare the file of api_key_file with Tirreno's page API, \
             and reload nginx. The spool keeps the events."
        }
        Fault::KeyRefused(_) => {
            "Tirreno does not know the API key. Compare the file of api_key_file with Tirreno's page API, \
             and reload nginx. The reload drops the events that wait, as there is no spool: to lose none, make \
             Tirreno accept the old key, which is tried every 30 s."
        }
        Fault::Puzzled => {
            "Tirreno answers 200, as it does when a required value is missing. Is its version supported? \
             See accept_200."
        }
        Fault::Answered(429) => "Tirreno limits the rate; events follow more slowly, none is lost.",
        Fault::Answered(500..) => {
            "The server has a fault of its own: see its log. Events are kept."
        }
        Fault::Answered(_) => {
            "The url of the target is wrong, or a proxy stands in between: it must end with /sensor/. \
             Redirects are not followed."
        }
        Fault::HostNotFound => {
            "The host of the target has no address: see the url, and the system's resolver."
        }
        Fault::ConnectionRefused if target.kind == "tirreno" => {
            "Nothing listens at the target's address. Is Tirreno running? Events are kept, and follow when \
             it answers."
        }
        Fault::ConnectionRefused => {
            "Nothing listens at the target's address. Is the receiver running?"
        }
        Fault::HostUnreachable | Fault::TimedOut => {
            "The target's address does not answer: a firewall, a network that is down, or a server that is \
             overloaded."
        }
        Fault::Tls(_) => {
            "No TLS connection comes about: the reason says which of certificate, name, authority \
             (ssl_trusted_certificate) or protocol it is."
        }
        Fault::HttpToTls => "Write https:// in the url.",
        Fault::PlainToTls => "Set transport tls.",
        Fault::NotUnderstood(_) | Fault::Unreadable => {
            "Something else than Tirreno answers: see the url, and what stands before the server. Events are kept."
        }
        Fault::ConnectionBroken => {
            "The connection ended before the answer: see the server's log, and http or https in the url."
        }
        Fault::DiskFull => {
            "The disk is full: make room. Events are kept in memory meanwhile, as many as the queue holds."
        }
        Fault::PermissionDenied => {
            "The workers' user may not write there: see owner and mode of the directory."
        }
        Fault::ReadOnly => {
            "The file system is read-only: mount it for writing, or choose another path."
        }
        Fault::NotFound => "The directory does not exist: make it, for the workers' user.",
        Fault::Busy => {
            "Another process holds the file: is another nginx running with the same path?"
        }
        Fault::NotPlain => {
            "The workers' user, which other programs may share, has put something else there: remove it, and see who \
             did it."
        }
        Fault::TooLong => "A record is longer than the receiver takes: see max_message_size.",
        _ => "nginx's error log tells more.",
    }
}

/// What to do about events that were dropped for this reason.
pub(super) fn dropped(reason: &str) -> &'static str {
    match reason {
        "zone_full" => "Raise tirreno_zone, or look for a process that hangs.",
        "queue_full" => {
            "The target was away for longer than its queue holds: give it a spool, or a larger queue."
        }
        "shutdown" => "nginx stopped while they waited: a spool keeps them.",
        "deliverer_died" => {
            "A worker was killed: look for SIGKILL, or the out-of-memory killer, in the system's log. A spool \
             keeps events."
        }
        "target_gone" => "The target was taken out of the configuration while events waited.",
        "spool_full_or_expired" => {
            "The spool reached max_size or max_age: see how long the target was away."
        }
        _ => "nginx's error log tells more.",
    }
}

/// Where more is known of rejected events.
pub(super) fn rejected(has_spool: bool) -> &'static str {
    match has_spool {
        true => {
            "The row with that id in the spool's table rejected holds the event; it can be sent again from there. An \
             audit target has it under its trace_id."
        }
        false => {
            "An audit target has the event under its trace_id, nginx's $request_id. A spool would keep it to be sent \
             again."
        }
    }
}

/// What it means that requests are skipped, or not sent whole, for this reason.
pub(super) fn skipped(reason: &str) -> &'static str {
    match reason {
        "anonymous" => "without a user: usual for visitors who are not signed in",
        "event_off" => "a rule or tirreno_default_event says off",
        "invalid" => {
            "with a value that is too long and must not be cut: sent without it, or, if all is too long, not at all"
        }
        _ => "",
    }
}
