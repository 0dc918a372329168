use super::*;
use crate::shm::zone::{Fault, anonymous};

fn snapshot() -> Snapshot {
    let zone = anonymous(1 << 20).unwrap();
    let slot = zone.target_slot("a\"<b", 0).unwrap();
    (0..3).for_each(|_| zone.count_captured(1 << slot));
    zone.count_zone_full(1 << slot);
    let ledger = zone.enlist(std::process::id()).unwrap();
    ledger.collected(slot, 1);
    ledger.delivered(slot, 1);
    ledger.show(slot, State::Retrying, Some(Fault::ConnectionRefused));
    zone.metrics().delivered(slot, crate::clock::wall_ms() - 2_000, 1);
    zone.metrics().event(EventType::AccountLogin, Identity::Answer);
    zone.metrics().event(EventType::PageView, Identity::Claim);
    zone.count_identity(Identity::Answer, true, false);
    let target = Target::read(zone, slot, "a\"<b", "tirreno", true);
    Snapshot::read(zone, "0.2.0", vec![target])
}

#[test]
fn wanted_format() {
    let browser = b"text/html,application/xhtml+xml,*/*;q=0.8";
    let prometheus =
        b"application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
    for (argument, accept, format) in [
        (None, &b""[..], Some(Format::Json)),
        (None, b"*/*", Some(Format::Json)),
        (None, browser, Some(Format::Html)),
        (None, prometheus, Some(Format::Prometheus)),
        (None, b"application/json, text/html", Some(Format::Json)),
        (None, b"Text/HTML", Some(Format::Html)),
        (None, b"text/html;q=0, text/plain; Q=0.000, */*", Some(Format::Json)),
        (None, b"application/json;q=0, text/html;level=1;q=0.1", Some(Format::Html)),
        (Some(&b"prometheus"[..]), browser, Some(Format::Prometheus)),
        (Some(b"json"), browser, Some(Format::Json)),
        (Some(b"xml"), browser, None),
    ] {
        assert_eq!(Format::wanted(argument, accept), format);
    }
}

#[test]
fn json_tells_what_was_counted() {
    let status: serde_json::Value = serde_json::from_str(&json(&snapshot())).unwrap();
    let target = &status["targets"]["a\"<b"];
    assert_eq!(target["state"], "retrying");
    assert_eq!(target["last_error"], "connection refused");
    assert_eq!((&target["delivered"], &target["dropped"]), (&1.into(), &1.into()));
    assert_eq!(target["dropped_by_reason"]["zone_full"], 1);
    assert_eq!(target["delivery_seconds"]["buckets"]["1"], 0);
    assert_eq!(target["delivery_seconds"]["buckets"]["2.5"], 1);
    assert_eq!(status["identity"]["answer"], 1);
    assert_eq!(status["identity"]["mismatched"], 1);
    assert_eq!(status["events"]["page_view"]["claim"], 1);
    assert!(status["events"].get("page_edit").is_none());
}

#[test]
fn metrics_are_well_formed() {
    let text = prometheus(&snapshot());
    for line in [
        "tirreno_delivered_events_total{target=\"a\\\"<b\"} 1",
        "tirreno_dropped_events_total{target=\"a\\\"<b\",reason=\"zone_full\"} 1",
        "tirreno_target_state{target=\"a\\\"<b\",state=\"retrying\"} 1",
        "tirreno_target_state{target=\"a\\\"<b\",state=\"ok\"} 0",
        "tirreno_delivery_seconds_bucket{target=\"a\\\"<b\",le=\"1\"} 0",
        "tirreno_delivery_seconds_bucket{target=\"a\\\"<b\",le=\"+Inf\"} 1",
        "tirreno_events_total{type=\"account_login\",identity=\"answer\"} 1",
        "tirreno_identity_mismatches_total 1",
    ] {
        assert!(text.lines().any(|l| l == line), "{line}\n{text}");
    }
    // Each family is declared once, before its samples.
    let declared: Vec<_> = text.lines().filter_map(|l| l.strip_prefix("# TYPE ")).collect();
    let mut unique = declared.clone();
    unique.sort_unstable();
    unique.dedup();
    assert_eq!(unique.len(), declared.len());
}

#[test]
fn page_hides_nothing_and_lets_nothing_in() {
    let html = page(&snapshot());
    assert!(html.contains("connection refused") && html.contains("Is Tirreno running?"));
    assert!(html.contains("data-key=\"delivered\" data-value=\"1\""));
    assert!(html.contains("a&quot;&lt;b") && !html.contains("a\"<b"));
    assert!(!html.contains("style=") && !html.contains("http://") && !html.contains("https://"));
    assert!(SECURITY_POLICY.starts_with("default-src 'none'"));
}

#[test]
fn a_bound_is_not_shown_shorter_than_it_is() {
    use super::page::seconds;
    let bounds = crate::shm::metrics::LATENCY_BOUNDS_MS.map(|ms| seconds(ms as f64 / 1000.0));
    let shown = [
        "50 ms", "100 ms", "250 ms", "500 ms", "1 s", "2.5 s", "5 s", "15 s", "60 s", "5 min",
        "60 min", "24 h",
    ];
    assert_eq!(bounds, shown);
}
