//! The steps of the demo. Each step makes its requests, waits for their events, and checks them.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use tirreno_tests::client::{self, Connection, Response};
use tirreno_tests::sensor::{Sensor, StoredEvent};

use crate::app::{App, PEOPLE, SESSION, USER};
use crate::{PATIENCE, Result};

/// A header that each browser sends.
const BROWSER: (&str, &str) = ("User-Agent", "Mozilla/5.0 (X11; Linux x86_64) Firefox/145.0");
/// A text that no event or record may contain.
const SECRET: &str = "do-not-show-this";

/// The objects that the steps use.
pub(crate) struct Tour {
    pub(crate) port: u16,
    pub(crate) sensor: Arc<Sensor>,
    pub(crate) app: Arc<App>,
    /// The audit file.
    pub(crate) audit: PathBuf,
}

impl Tour {
    /// All steps, in their order.
    ///
    /// # Errors
    /// The first thing that is not as it should be.
    pub(crate) fn run(&self) -> Result<()> {
        let alice = self.signs_in()?;
        self.fails_to_sign_in()?;
        self.forges_a_cookie(&alice)?;
        self.hides_a_secret(&alice)?;
        self.writes_audit_records()?;
        self.outlives_an_outage(&alice)?;
        self.shows_its_status()
    }

    fn signs_in(&self) -> Result<String> {
        say(
            "Alice signs in. Her name is known from the application's answer, not from what she typed.",
        );
        let (cookies, login) = self.sign_in(0)?;
        check(login.user_name == "alice" && login.event_type == "account_login", &login)?;
        say("Each request of her session is hers, though it carries nothing but a random token.");
        let viewed = self.event("GET", "/town-square", &[("Cookie", &session(&cookies))], "")?;
        check(viewed.user_name == "alice" && viewed.event_type == "page_view", &viewed)?;
        Ok(cookies)
    }

    fn fails_to_sign_in(&self) -> Result<()> {
        say("Somebody tries a password. The account that he names is a hash as long as nobody has signed in
   with it, since people type passwords into the wrong field. The password is nowhere.");
        let body = format!("user=carol&password={SECRET}");
        let failed = self.event("POST", "/login", &[], &body)?;
        check(
            failed.event_type == "account_login_fail" && failed.user_name.starts_with("unknown-"),
            &failed,
        )
    }

    fn forges_a_cookie(&self, alice: &str) -> Result<()> {
        say("Bob signs in, and sends Alice's name in the cookie that says who he is. The event is his;
   the audit record has what he claimed.");
        let (bob, _) = self.sign_in(1)?;
        let forged = format!("{}; {USER}=alice", session(&bob));
        let seen = self.event("GET", "/account", &[("Cookie", &forged)], "")?;
        check(seen.user_name == "bob", &seen)?;
        say(
            "Without a session her name counts for nothing: the application answers 401, and nobody did it.",
        );
        let before = self.sensor.stored_count();
        self.request("GET", "/account", &[("Cookie", &format!("{USER}=alice"))], "")?;
        // Events are stored in order: once the next event is there, an event of that request would be
        // there, too.
        self.event("GET", "/town-square", &[("Cookie", &session(alice))], "")?;
        if self.sensor.stored_count() != before + 1 {
            return Err("a forged cookie made an event".into());
        }
        Ok(())
    }

    fn hides_a_secret(&self, alice: &str) -> Result<()> {
        say("Secrets in a URL are hidden before anything is kept.");
        let path = format!("/reset-password?token={SECRET}&lang=en");
        let hidden = self.event("GET", &path, &[("Cookie", &session(alice))], "")?;
        check(hidden.url.contains("lang=en") && !hidden.url.contains(SECRET), &hidden)
    }

    fn writes_audit_records(&self) -> Result<()> {
        say(
            "The same events are in an audit file, one line of JSON each. The line of Bob's forged cookie:",
        );
        let claimed = "\"claimed_user_id\":\"alice\"";
        let records = self.wait("the audit record", || {
            let records = fs::read_to_string(&self.audit).ok()?;
            records.contains(claimed).then_some(records)
        })?;
        let line = records.lines().find(|line| line.contains(claimed)).unwrap_or_default();
        println!("{line}");
        if records.contains(SECRET) {
            return Err("the audit file has a secret".into());
        }
        Ok(())
    }

    fn outlives_an_outage(&self, alice: &str) -> Result<()> {
        say(
            "Tirreno goes down. Requests do not notice; their events wait, and the status says so.",
        );
        let before = self.sensor.stored_count();
        self.app.set_tirreno_down(true);
        for number in 1..=20 {
            let path = format!("/town-square?page={number}");
            self.request("GET", &path, &[("Cookie", &session(alice))], "")?;
        }
        let target = self.wait("the status of the outage", || {
            let target = self.status().ok()?["targets"]["tirreno"].clone();
            (target["state"] == "retrying" && target["pending"] == 20).then_some(target)
        })?;
        println!(
            "state: {}, {}, pending: {}",
            target["state"], target["last_error"], target["pending"]
        );
        say("It comes back, and gets them in their order.");
        self.app.set_tirreno_down(false);
        self.wait_stored(before + 20).map(drop)
    }

    fn shows_its_status(&self) -> Result<()> {
        say("What has become of all events. A browser gets a page, Prometheus its metrics:");
        println!("http://127.0.0.1:{}/tirreno-status", self.port);
        let counts = self.wait("that nothing is pending", || {
            let target = self.status().ok()?["targets"]["tirreno"].clone();
            (target["pending"] == 0).then_some(target)
        })?;
        for name in ["captured", "delivered", "rejected", "dropped", "pending"] {
            println!("{name}: {}", counts[name]);
        }
        if counts["captured"] != counts["delivered"] {
            return Err(format!("not every event was delivered: {counts}").into());
        }
        Ok(())
    }

    /// Signs in one of [`PEOPLE`]; the cookies of the answer, and the event.
    fn sign_in(&self, person: usize) -> Result<(String, Arc<StoredEvent>)> {
        let (user, password) = PEOPLE[person];
        let before = self.sensor.stored_count();
        let body = format!("user={user}&password={password}");
        let response = self.request("POST", "/login", &[], &body)?;
        let cookies = response.headers.iter().filter(|(name, _)| name == "Set-Cookie");
        let cookies: Vec<_> = cookies.map(|(_, value)| String::from_utf8_lossy(value)).collect();
        Ok((cookies.join("; "), self.wait_stored(before + 1)?))
    }

    /// Makes a request, and returns its event.
    fn event(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Result<Arc<StoredEvent>> {
        let before = self.sensor.stored_count();
        self.request(method, path, headers, body)?;
        self.wait_stored(before + 1)
    }

    fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Result<Response> {
        let form = ("Content-Type", "application/x-www-form-urlencoded");
        let headers = [&[BROWSER, form], headers].concat();
        let mut connection = Connection::open(([127, 0, 0, 1], self.port).into())?;
        let response = connection.request(method, path, &headers, body.as_bytes())?;
        println!("{method} {path}: {}", response.status);
        Ok(response)
    }

    /// The last of `count` events.
    fn wait_stored(&self, count: usize) -> Result<Arc<StoredEvent>> {
        let stored = self.sensor.wait_stored(count, PATIENCE).map_err(|e| e.to_string())?;
        let secret = stored.iter().find(|event| event.to_line().contains(SECRET));
        if let Some(event) = secret {
            return Err(format!("a secret was sent: {}", event.to_line()).into());
        }
        Ok(Arc::clone(&stored[count - 1]))
    }

    fn status(&self) -> Result<serde_json::Value> {
        let response = client::get(self.port, "/tirreno-status", &[])?;
        Ok(serde_json::from_str(&response.text())?)
    }

    fn wait<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> Result<T> {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = look() {
                return Ok(found);
            }
            if Instant::now() > until {
                return Err(format!("{what} did not come in {} s", PATIENCE.as_secs()).into());
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

fn say(text: &str) {
    println!("\n-- {text}");
}

fn check(holds: bool, event: &StoredEvent) -> Result<()> {
    if holds { Ok(()) } else { Err(format!("an event is wrong: {}", event.to_line()).into()) }
}

/// The cookie with the session's token alone.
fn session(cookies: &str) -> String {
    let mut all = cookies.split("; ");
    all.find(|c| c.starts_with(SESSION)).unwrap_or_default().to_owned()
}
