//! The application of the demo: two people can sign in. It knows nothing of nginx or of the module.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tirreno_tests::backend::{Answer, BackendRequest};
use tirreno_tests::sensor::{Param, Sensor, clean_utf8, parse_form};

/// Names and passwords.
pub(crate) const PEOPLE: [(&str, &str); 2] = [("alice", "wonderland"), ("bob", "builder")];
/// The cookie that holds a session's token.
pub(crate) const SESSION: &str = "SESSION";
/// The cookie that names the session's user, like Mattermost's `MMUSERID`, only for scripts in the page.
pub(crate) const USER: &str = "USER";

/// The application, and the switch for the stand-in for Tirreno.
pub(crate) struct App {
    /// Token to user.
    sessions: Mutex<HashMap<String, String>>,
    sensor: Arc<Sensor>,
    is_tirreno_down: AtomicBool,
}

impl App {
    pub(crate) fn new(sensor: Arc<Sensor>) -> Self {
        Self { sessions: Mutex::default(), sensor, is_tirreno_down: AtomicBool::new(false) }
    }

    /// Takes the stand-in for Tirreno down, or brings it up again.
    pub(crate) fn set_tirreno_down(&self, down: bool) {
        if self.is_tirreno_down.swap(down, Ordering::SeqCst) == down {
            return;
        }
        if down {
            self.sensor.refuse();
        } else {
            self.sensor.listen_again();
        }
    }

    pub(crate) fn answer(&self, request: &BackendRequest) -> Answer {
        let path = request.target.split('?').next().unwrap_or_default();
        let user = self.user(request);
        match (request.method.as_str(), path, user) {
            ("POST", "/login", _) => self.sign_in(request),
            ("POST", "/logout", Some(_)) => self.sign_out(request),
            ("POST", "/tirreno/stop" | "/tirreno/start", _) => {
                self.set_tirreno_down(path.ends_with("stop"));
                redirect(Vec::new())
            }
            ("POST", "/account/email", Some(_)) => redirect(Vec::new()),
            ("GET", "/account", Some(user)) => page(200, &format!("This is {user}'s account.")),
            ("GET", "/search" | "/town-square" | "/reset-password", _) => page(200, "Here it is."),
            (_, "/logout" | "/account" | "/account/email", None) => page(401, "Please sign in."),
            _ => page(404, "There is no such page."),
        }
    }

    fn user(&self, request: &BackendRequest) -> Option<String> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).get(&token(request)?).cloned()
    }

    fn sign_in(&self, request: &BackendRequest) -> Answer {
        let form = parse_form(&request.body);
        let field = |name: &str| match form.get(name) {
            Some(Param::Text(text)) => clean_utf8(text),
            _ => String::new(),
        };
        let (user, password) = (field("user"), field("password"));
        if !PEOPLE.contains(&(user.as_str(), password.as_str())) {
            return page(401, "Wrong name or password.");
        }
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        let token = random_token();
        let cookies = vec![set(SESSION, &format!("{token}; HttpOnly")), set(USER, &user)];
        sessions.insert(token, user);
        redirect(cookies)
    }

    fn sign_out(&self, request: &BackendRequest) -> Answer {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        token(request).and_then(|token| sessions.remove(&token));
        redirect(vec![set(SESSION, "; Max-Age=0"), set(USER, "; Max-Age=0")])
    }
}

/// 128 random bits, from the keys of the standard library's hash maps.
fn random_token() -> String {
    let half = || RandomState::new().build_hasher().finish();
    format!("{:016x}{:016x}", half(), half())
}

fn token(request: &BackendRequest) -> Option<String> {
    let cookies = request.header("Cookie")?;
    let token = cookies.split("; ").find_map(|c| c.strip_prefix(SESSION)?.strip_prefix('='))?;
    Some(token.to_owned())
}

fn set(cookie: &str, value: &str) -> (String, String) {
    ("Set-Cookie".to_owned(), format!("{cookie}={value}; Path=/; SameSite=Lax"))
}

fn redirect(mut headers: Vec<(String, String)>) -> Answer {
    headers.push(("Location".to_owned(), "/".to_owned()));
    Answer { status: 303, headers, body: Vec::new() }
}

fn page(status: u16, text: &str) -> Answer {
    let headers = vec![("Content-Type".to_owned(), "text/html; charset=utf-8".to_owned())];
    let body = format!("<!doctype html><p>{text}<p><a href=\"/\">Back</a>\n");
    Answer { status, headers, body: body.into_bytes() }
}
