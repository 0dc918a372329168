//! The measured server's behaviour, row by row.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::client::{self, Connection, Response};
use crate::tls::Authority;
use crate::wait::wait_until;

const FORM: (&str, &str) = ("Content-Type", "application/x-www-form-urlencoded");
const KEY: (&str, &str) = ("Api-Key", DEFAULT_KEY);
const VALID: &str = "ipAddress=1.2.3.4&url=/a?b%3Dc&eventTime=2026-02-03+04:05:06.789";
const SOON: Duration = Duration::from_secs(10);

fn sensor() -> Sensor {
    Sensor::start(SensorOptions::default())
}

fn connect(sensor: &Sensor) -> Connection {
    Connection::open(sensor.server.address()).unwrap()
}

fn send(connection: &mut Connection, body: &str) -> io::Result<Response> {
    connection.request("POST", "/sensor/", &[FORM, KEY], body.as_bytes())
}

fn post(sensor: &Sensor, body: &str) -> u16 {
    send(&mut connect(sensor), body).unwrap().status
}

/// What becomes of a valid event with `more` parameters.
fn stored(more: &str) -> StoredEvent {
    try_stored(more, None).unwrap()
}

fn lost(more: &str) -> String {
    try_stored(more, None).unwrap_err()
}

fn try_stored(more: &str, trace_id: Option<&str>) -> Result<StoredEvent, String> {
    let params = parse_form(format!("{VALID}&{more}").as_bytes());
    let arrival = event::Arrival { order: 0, connection: 1, at: Instant::now() };
    event::store(&params, trace_id.map(str::as_bytes), arrival)
}

#[test]
fn a_valid_event_is_accepted_and_stored() {
    let sensor = sensor();
    let headers = [FORM, KEY, ("X-Request-Id", "abc")];
    let body = format!("{VALID}&userName=ann&httpCode=200&httpMethod=GET&eventType=page_edit");
    let answer = connect(&sensor).request("POST", "/sensor/", &headers, body.as_bytes()).unwrap();
    assert_eq!(answer.status, 204);
    let events = sensor.wait_stored(1, SOON).unwrap();
    assert_eq!(
        events[0].to_line(),
        "eventType=page_edit userName=ann ipAddress=1.2.3.4 httpMethod=GET url=/a?b=c \
         httpCode=200 eventTime=\"2026-02-03 04:05:06.789\" X-Request-Id=abc"
    );
    let request = &sensor.requests()[0];
    assert_eq!(request.answer, Some(204));
    assert_eq!(request.param("userName").as_deref(), Some("ann"));
    assert_eq!(request.header("api-key").as_deref(), Some(DEFAULT_KEY));
}

#[test]
fn an_event_without_a_required_parameter_is_answered_200() {
    let sensor = sensor();
    for missing in REQUIRED {
        let kept: Vec<_> = VALID.split('&').filter(|pair| !pair.starts_with(missing)).collect();
        let answer = send(&mut connect(&sensor), &kept.join("&")).unwrap();
        assert_eq!((answer.status, &*answer.body), (200, &b""[..]), "without {missing}");
    }
    assert_eq!(sensor.stored_count(), 0);
    assert_eq!(post(&sensor, "ipAddress=1.2.3.4&url=&eventTime=2026-02-03+04:05:06"), 204);
    assert_eq!(post(&sensor, "ipAddress&url&eventTime"), 204, "empty is present");
}

#[test]
fn an_event_with_a_bad_key_is_answered_200() {
    let sensor = sensor();
    let mut connection = connect(&sensor);
    let mut ask = |headers: &[(&str, &str)]| {
        connection.request("POST", "/sensor/", headers, VALID.as_bytes()).unwrap().status
    };
    assert_eq!(ask(&[FORM]), 200);
    assert_eq!(ask(&[FORM, ("Api-Key", "wrong")]), 200);
    assert_eq!(ask(&[KEY]), 200, "PHP reads forms only");
    sensor.set_keys(["wrong"]);
    assert_eq!(ask(&[FORM, ("Api-Key", "wrong")]), 204);
    assert_eq!(ask(&[FORM, KEY]), 200);
    assert_eq!(sensor.stored_count(), 1);
}

#[test]
fn other_paths_are_not_found() {
    let sensor = sensor();
    let mut connection = connect(&sensor);
    for path in ["/sensor", "/", "/sensor/batch", "/tirreno/sensor/"] {
        let answer = connection.request("POST", path, &[FORM, KEY], VALID.as_bytes()).unwrap();
        assert_eq!(answer.status, 404, "{path}");
    }
    assert_eq!(connection.request("GET", "/sensor/", &[KEY], b"").unwrap().status, 200);
    let below = Sensor::start(SensorOptions { prefix: "/tirreno".into(), ..Default::default() });
    assert!(below.url().ends_with("/tirreno/sensor/"), "{}", below.url());
    let mut connection = connect(&below);
    let answer = connection.request("POST", "/tirreno/sensor/", &[FORM, KEY], VALID.as_bytes());
    assert_eq!(answer.unwrap().status, 204);
}

#[test]
fn the_key_check_tells_keys_apart() {
    let rate = Some(Rate::new(0, 60));
    let sensor = Sensor::start(SensorOptions { rate, ..Default::default() });
    let check = |headers: &[(&str, &str)]| {
        let path = "/api/v1/blacklist/search";
        connect(&sensor).request("POST", path, headers, br#"{"value":"x"}"#).unwrap()
    };
    assert_eq!(check(&[]).status, 400);
    assert_eq!(check(&[("Api-Key", "wrong")]).status, 401);
    let good = check(&[KEY]);
    assert_eq!((good.status, &*good.text()), (200, r#"{"value":"x","blacklisted":false}"#));
    sensor.set_key_check(Answer::code(503));
    assert_eq!(check(&[KEY]).status, 503);
    let answers: Vec<_> = sensor.key_checks().iter().map(|check| check.answer).collect();
    assert_eq!(answers, [Some(400), Some(401), Some(200), Some(503)]);
    assert_eq!((sensor.events_received(), sensor.stored_count()), (0, 0));
}

#[test]
fn the_rate_is_a_sliding_window() {
    let start = Instant::now();
    let valid = parse_form(VALID.as_bytes());
    let invalid = Params::new();
    let sensor = sensor();
    sensor.set_rate(Some(Rate::new(3, 5)));
    let mut state = sensor.shared.state();
    let mut judge =
        |params, key, millis| state.judge(params, key, start + Duration::from_millis(millis));
    assert_eq!(judge(&valid, true, 0), 204);
    assert_eq!(judge(&invalid, true, 1000), 200, "counts");
    assert_eq!(judge(&valid, false, 1500), 200, "does not count");
    assert_eq!(judge(&valid, true, 2000), 204);
    assert_eq!(judge(&valid, true, 3000), 429, "does not count");
    assert_eq!(judge(&valid, true, 4999), 429);
    assert_eq!(judge(&valid, true, 5000), 204, "the first has left the window");
    assert_eq!(judge(&valid, true, 5500), 429);
    assert_eq!(judge(&valid, true, 6000), 204);
}

#[test]
fn a_refused_event_is_not_stored_and_names_no_time() {
    let rate = Some(Rate::new(2, 3600));
    let sensor = Sensor::start(SensorOptions { rate, ..Default::default() });
    let mut connection = connect(&sensor);
    let answers: Vec<_> = (0..3).map(|_| send(&mut connection, VALID).unwrap()).collect();
    assert_eq!(answers.iter().map(|answer| answer.status).collect::<Vec<_>>(), [204, 204, 429]);
    assert_eq!(answers[2].header("Retry-After"), None);
    assert_eq!(sensor.stored_count(), 2);
}

#[test]
fn connections_are_kept_or_closed() {
    let kept = sensor();
    let mut connection = connect(&kept);
    for _ in 0..3 {
        send(&mut connection, VALID).unwrap();
        assert!(!connection.ended());
    }
    assert_eq!(kept.connections(), 1);
    assert!(kept.stored().iter().all(|event| event.connection == 1));

    let closing = Sensor::start(SensorOptions { close: true, ..Default::default() });
    let mut connection = connect(&closing);
    let answer = send(&mut connection, VALID).unwrap();
    assert_eq!(answer.header("Connection").as_deref(), Some("close"));
    assert!(send(&mut connection, VALID).is_err());

    let counting = Sensor::start(SensorOptions { max_requests: Some(2), ..Default::default() });
    let mut connection = connect(&counting);
    send(&mut connection, VALID).unwrap();
    assert!(!connection.ended());
    send(&mut connection, VALID).unwrap();
    assert!(connection.ended());

    let idle_close = Some(Duration::from_millis(20));
    let impatient = Sensor::start(SensorOptions { idle_close, ..Default::default() });
    let mut connection = connect(&impatient);
    send(&mut connection, VALID).unwrap();
    wait_until(SOON, "the idle connection to be closed", || impatient.open_connections() == 0);
    assert!(send(&mut connection, VALID).is_err());
}

#[test]
fn answers_can_be_scripted_by_url() {
    let sensor = sensor();
    sensor.set_rule("/blocked", Answer::code(403));
    sensor.set_rule("a b", Answer::redirect(301, "http://elsewhere/"));
    sensor.set_rule("/late", Answer::normal().after(Duration::from_millis(50)));
    let mut connection = connect(&sensor);
    let mut ask = |url: &str| {
        let body = format!("ipAddress=1.2.3.4&url={url}&eventTime=2026-02-03+04:05:06");
        send(&mut connection, &body).unwrap()
    };
    assert_eq!(ask("/blocked/x").status, 403);
    let moved = ask("/a%20b");
    assert_eq!(
        (moved.status, moved.header("Location").as_deref()),
        (301, Some("http://elsewhere/"))
    );
    assert_eq!(ask("/fine").status, 204);
    let late = ask("/late");
    assert!(late.status == 204 && late.latency >= Duration::from_millis(50));
    sensor.set_default(Answer::code(500));
    assert_eq!(ask("/fine").status, 500);
    sensor.clear_rules();
    assert_eq!(ask("/blocked/x").status, 500);
    assert_eq!(sensor.stored_count(), 2);
    sensor.set_default(Answer::code(200).storing());
    assert_eq!(ask("/documented").status, 200);
    assert_eq!(sensor.stored_count(), 3);
}

#[test]
fn connections_can_end_without_an_answer() {
    let sensor = sensor();
    sensor.set_default(Answer::reset());
    let error = send(&mut connect(&sensor), VALID).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    sensor.set_default(Answer::close().storing());
    let error = send(&mut connect(&sensor), VALID).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    assert_eq!(sensor.stored_count(), 1);
    sensor.set_default(Answer::hang());
    let port = sensor.port();
    let hanging = std::thread::spawn(move || {
        let mut connection = Connection::open(([127, 0, 0, 1], port).into()).unwrap();
        send(&mut connection, VALID).map(|answer| answer.status)
    });
    wait_until(SOON, "the third request", || sensor.events_received() == 3);
    assert!(!hanging.is_finished());
    sensor.drop_connections();
    assert!(hanging.join().unwrap().is_err());
    assert!(sensor.requests().iter().all(|request| request.answer.is_none()));
}

#[test]
fn the_port_can_refuse_and_listen_again() {
    let sensor = sensor();
    let mut connection = connect(&sensor);
    send(&mut connection, VALID).unwrap();
    sensor.refuse();
    assert!(send(&mut connection, VALID).is_err());
    let refused = Connection::open(sensor.server.address()).map(drop).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    sensor.listen_again();
    assert_eq!(post(&sensor, VALID), 204);
    assert_eq!(sensor.stored().iter().map(|event| event.order).collect::<Vec<_>>(), [0, 1]);
}

#[test]
fn tls_shows_the_given_certificate() {
    let (ours, other) = (Authority::new("ours"), Authority::new("other"));
    let tls = Some(ours.localhost().server_config());
    let sensor = Sensor::start(SensorOptions { tls, ..Default::default() });
    assert!(sensor.url().starts_with("https://localhost:"), "{}", sensor.url());
    let ask = |trusting: &Authority, name: &str| {
        let config = trusting.client_config();
        let mut connection = Connection::open_tls(sensor.server.address(), name, config)?;
        send(&mut connection, VALID).map(|answer| answer.status)
    };
    assert_eq!(ask(&ours, "localhost").unwrap(), 204);
    assert_eq!(ask(&ours, "127.0.0.1").unwrap(), 204);
    assert!(ask(&ours, "example.org").unwrap_err().to_string().contains("not valid for name"));
    assert!(ask(&other, "localhost").unwrap_err().to_string().contains("UnknownIssuer"));
    sensor.set_tls(Some(ours.expired_localhost().server_config()));
    assert!(ask(&ours, "localhost").unwrap_err().to_string().contains("expired"));
    sensor.set_tls(None);
    assert_eq!(post(&sensor, VALID), 204);
}

#[test]
fn an_observer_sees_each_stored_event() {
    let seen = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&seen);
    let observer: Observer = Box::new(move |event| {
        assert_eq!(event.ip_address, "1.2.3.4");
        counter.fetch_add(1, Ordering::Relaxed);
    });
    let sensor = Sensor::start(SensorOptions {
        observer: Some(observer),
        record_requests: false,
        ..Default::default()
    });
    assert_eq!(post(&sensor, VALID), 204);
    assert_eq!(post(&sensor, "url=/"), 200);
    assert_eq!(seen.load(Ordering::Relaxed), 1);
    assert!(sensor.requests().is_empty());
    let error = sensor.wait_stored(2, Duration::from_millis(1)).unwrap_err();
    assert!(error.to_string().starts_with("1 of 2 events stored after 1ms"), "{error}");
}

#[test]
fn chunked_bodies_are_read() {
    let sensor = sensor();
    let (first, second) = VALID.split_at(10);
    let message = format!(
        "POST /sensor/ HTTP/1.1\r\nHost: x\r\nApi-Key: {DEFAULT_KEY}\r\nContent-Type: {}\r\n\
         Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{first}\r\n{:x}\r\n{second}\r\n0\r\n\r\n",
        FORM.1,
        first.len(),
        second.len()
    );
    let answer = client::raw(sensor.port(), message.as_bytes()).unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 204 "), "{}", clean_utf8(&answer));
}

#[test]
fn users_are_named() {
    assert_eq!(stored("").user_name, "N/A");
    assert_eq!(stored("userName=").user_name, "");
    assert_eq!(stored("userName=ann&emailAddress=a@b.example").user_name, "ann");
    let by_address = stored("emailAddress=a@b.example");
    assert_eq!(by_address.user_name, format!("{:x}", md5::compute("a@b.example")));
}

#[test]
fn addresses_are_checked() {
    let event = stored("emailAddress=Ann@Example.ORG");
    assert_eq!(event.email_address.as_deref(), Some("ann@example.org"));
    let event = stored("emailAddress=ann");
    assert_eq!(event.email_address.as_deref(), Some("broken@user.local"));
    assert_eq!(event.flagged, ["emailAddress: no address"]);
    assert_eq!(stored("ipAddress=2001:db8::1").ip_address, "2001:db8::1");
    for bad in ["", "1.2.3", "unix:", "1.2.3.4:80", "host"] {
        let event = stored(&format!("ipAddress={bad}"));
        assert_eq!(event.ip_address, "0.0.0.0", "{bad}");
        assert_eq!(event.flagged, ["ipAddress: no address"], "{bad}");
    }
}

#[test]
fn long_values_are_cut_and_flagged() {
    let limits = [
        ("userName", 100),
        ("url", 2047),
        ("userAgent", 511),
        ("httpReferer", 2047),
        ("browserLanguage", 255),
        ("firstName", 100),
        ("lastName", 100),
        ("fullName", 100),
        ("pageTitle", 255),
        ("phoneNumber", 19),
    ];
    for (name, limit) in limits {
        let value = |length: usize| format!("{name}={}", "x".repeat(length));
        let length = |event: &StoredEvent| {
            let fields = event.fields();
            fields.iter().find(|(have, _)| *have == name).map(|(_, value)| value.len())
        };
        let fits = stored(&value(limit));
        assert_eq!((length(&fits), fits.flagged.len()), (Some(limit), 0), "{name}");
        let cut = stored(&value(limit + 1));
        assert_eq!(length(&cut), Some(limit), "{name}");
        assert_eq!(cut.flagged, [format!("{name}: cut to {limit} bytes")]);
    }
    assert_eq!(stored("phoneNumber=+1+2").phone_number.as_deref(), Some("12"));
}

#[test]
fn a_value_cut_in_a_character_loses_the_event() {
    let reason = lost(&format!("userAgent={}", "é".repeat(600)));
    assert_eq!(reason, "userAgent is not UTF-8 as the database gets it");
    let event = stored(&format!("userAgent=x{}", "é".repeat(600)));
    assert_eq!(event.user_agent.map(|agent| agent.len()), Some(511), "cut at a boundary");
    lost(&format!("userName={}", "€".repeat(40)));
    lost(&format!("eventType=x{}", "é".repeat(60)));
    lost(&format!("httpReferer={}", "é".repeat(1024)));
}

#[test]
fn a_loss_is_answered_204_and_kept_apart() {
    let sensor = sensor();
    assert_eq!(post(&sensor, &format!("{VALID}&httpCode=32768")), 204);
    assert_eq!(sensor.stored_count(), 0);
    let lost = sensor.lost();
    assert_eq!(lost[0].reason, "httpCode above 32767");
    assert_eq!(lost[0].params["httpCode"], Param::Text(b"32768".to_vec()));
}

#[test]
fn the_referer_is_decoded_once_more() {
    let referer = |encoded: &str| stored(&format!("httpReferer={encoded}")).http_referer.unwrap();
    assert_eq!(referer("http://x/?q=a%2Bb"), "http://x/?q=a b", "+ is a space now");
    assert_eq!(referer("http://x/?q=a%252Bb"), "http://x/?q=a+b");
    assert_eq!(referer("%2525"), "%");
    assert_eq!(referer("%25C3%25A9"), "é");
    assert_eq!(referer("100%25"), "100%");
    for bad in ["%25E9", "%25FF", "%25C3"] {
        let reason = lost(&format!("httpReferer=http://x/{bad}"));
        assert_eq!(reason, "httpReferer is not UTF-8 as the database gets it");
    }
    // 2,046 bytes and then an encoded character: the limit cuts its code.
    let long = format!("{}%2525C3", "x".repeat(2046));
    assert_eq!(referer(&long).len(), 2047);
    lost(&format!("httpReferer={}%25C3%25A9", "x".repeat(2044)));
}

#[test]
fn the_code_decides_about_errors() {
    let event = stored("httpCode=399&eventType=account_login");
    assert_eq!((event.http_code, &*event.event_type), (Some(399), "account_login"));
    let event = stored("httpCode=400&eventType=account_login");
    assert_eq!((event.http_code, &*event.event_type), (Some(400), "page_error"));
    assert_eq!(stored("eventType=account_login_fail").event_type, "account_login_fail");
    assert_eq!(stored("httpCode=401&eventType=account_login_fail").event_type, "page_error");
    assert_eq!(stored("httpCode=32767").http_code, Some(32_767));
    assert_eq!(lost("httpCode=99999999999999999999"), "httpCode above 32767");
    for bad in ["", "abc", "-1", "2e2"] {
        let event = stored(&format!("httpCode={bad}"));
        assert_eq!(event.http_code, Some(0), "{bad}");
        assert_eq!(event.flagged, ["httpCode: not digits"], "{bad}");
    }
    assert_eq!(stored("").http_code, None);
}

#[test]
fn types_and_methods_are_known_ones() {
    for known in EVENT_TYPES {
        assert_eq!(stored(&format!("eventType={known}")).event_type, known);
    }
    assert_eq!(stored("").event_type, "page_view");
    assert_eq!(stored("eventType=login").event_type, "page_view");
    assert_eq!(stored("httpMethod=PATCH").http_method.as_deref(), Some("PATCH"));
    assert_eq!(stored("httpMethod=PROPFIND").http_method, None);
}

#[test]
fn a_bad_time_becomes_now() {
    let before = chrono::DateTime::<chrono::Utc>::from(std::time::SystemTime::now()).naive_utc();
    for bad in ["", "2026-02-03T04:05:06Z", "1770000000"] {
        let event = stored(&format!("eventTime={bad}"));
        assert!(event.event_time >= before, "{bad}");
        assert_eq!(event.flagged, ["eventTime: not Y-m-d H:i:s.v, replaced by now"]);
    }
    assert_eq!(
        Some(stored("eventTime=2026-02-31+00:00:00").event_time),
        parse_time("2026-03-03 00:00:00"),
        "rolls over silently"
    );
    let event = stored("userCreated=yesterday");
    assert_eq!((event.user_created, event.flagged.len()), (None, 1));
    assert!(stored("userCreated=2026-02-03+04:05:06").user_created.is_some());
}

#[test]
fn a_trace_id_has_at_most_36_bytes() {
    let fits = "x".repeat(36);
    assert_eq!(try_stored("", Some(&fits)).unwrap().trace_id, Some(fits));
    let reason = try_stored("", Some(&"x".repeat(37))).unwrap_err();
    assert_eq!(reason, "X-Request-Id above 36 bytes");
}

#[test]
fn bytes_that_are_not_utf8_and_nul() {
    assert_eq!(stored("userAgent=a%FFb%E9").user_agent.as_deref(), Some("a?b?"));
    assert_eq!(stored("userAgent=a%00b").user_agent.as_deref(), Some("a"));
    assert_eq!(stored("url=/a%00b").url, "/a");
}

#[test]
fn payloads_follow_the_type() {
    let event = stored("eventType=page_search");
    assert_eq!((event.payload, event.flagged), (None, vec!["payload: missing".to_owned()]));
    let expected = serde_json::json!({"field_id": "q", "value": "", "field_name": null});
    for sent in [
        "payload[field_id]=q&payload[value]=",
        "payload=%7B%22field_id%22:%22q%22,%22value%22:%22%22%7D",
    ] {
        let event = stored(&format!("eventType=page_search&{sent}"));
        assert_eq!((event.payload, event.flagged.len()), (Some(expected.clone()), 0), "{sent}");
    }
    assert_eq!(stored("eventType=page_view&payload[value]=x").payload, None);
    let event = stored("eventType=account_email_change&payload[old_value]=x");
    assert_eq!(event.flagged, ["payload: new_value missing"]);
    let history = "fieldHistory=[%7B%22field_id%22:%221%22,%22new_value%22:2%7D]";
    let event = stored(&format!("eventType=field_edit&{history}"));
    assert_eq!(event.field_history.unwrap()[0]["new_value"], "2");
}

#[test]
fn nothing_is_deduplicated() {
    let sensor = sensor();
    let mut connection = connect(&sensor);
    for _ in 0..2 {
        let headers = [FORM, KEY, ("X-Request-Id", "same")];
        connection.request("POST", "/sensor/", &headers, VALID.as_bytes()).unwrap();
    }
    assert_eq!(sensor.stored_count(), 2);
    sensor.forget();
    assert_eq!((sensor.stored_count(), sensor.events_received()), (0, 0));
}
