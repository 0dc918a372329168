//! nginx before Nextcloud, its clients, and what they have done.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use tempfile::TempDir;
use tirreno_tests::application::{
    Body, FIREFOX, Options, PASSWORD, Request, Stage, cookie_header, take_cookies,
};
use tirreno_tests::cases;
use tirreno_tests::client::Response;
use tirreno_tests::nginx::Nginx;
use tirreno_tests::sensor::{DEFAULT_KEY, Sensor};
use tirreno_tests::tls::Authority;

/// What Nextcloud is called, whatever its port.
pub(crate) const HOST: &str = "cloud.example.com";

const ORIGIN: &str = "https://cloud.example.com";

const DESKTOP: &str =
    "Mozilla/5.0 (Linux) mirall/3.13.0 (Nextcloud, debian-6.1.0 ClientArchitecture: x86_64)";

/// nginx before Nextcloud, and what was done there.
pub(crate) struct Run {
    pub(crate) stage: Stage,
    /// Nextcloud's version.
    pub(crate) version: String,
    _certificates: TempDir,
}

/// A browser, or a program.
#[derive(Clone)]
pub(crate) struct Client {
    agent: &'static str,
    address: String,
    pub(crate) cookies: BTreeMap<String, String>,
    /// What a page says to its server so that no other site's page can.
    pub(crate) token: Option<String>,
    /// Whether it stays signed in.
    pub(crate) remember: bool,
    /// More headers.
    pub(crate) headers: Vec<(&'static str, String)>,
}

impl Client {
    /// A browser at that address.
    pub(crate) fn browser(address: &str) -> Self {
        Self {
            agent: FIREFOX,
            address: address.into(),
            cookies: BTreeMap::new(),
            token: None,
            remember: true,
            headers: Vec::new(),
        }
    }

    /// The program that keeps a computer's files in step, with a name and a password.
    pub(crate) fn desktop(address: &str, name: &str, password: &str) -> Self {
        let client = Self { agent: DESKTOP, ..Self::browser(address) };
        client.with("Authorization", &basic(name, password))
    }

    /// The same with another header.
    pub(crate) fn with(&self, name: &'static str, value: &str) -> Self {
        let mut client = self.clone();
        client.headers.push((name, value.into()));
        client
    }

    /// The same with another cookie.
    pub(crate) fn with_cookie(&self, name: &str, value: &str) -> Self {
        let mut client = self.clone();
        client.cookies.insert(name.into(), value.into());
        client
    }

    /// The same without a cookie.
    pub(crate) fn without_cookie(&self, name: &str) -> Self {
        let mut client = self.clone();
        client.cookies.remove(name);
        client
    }
}

pub(crate) fn basic(name: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{name}:{password}")))
}

/// What came back.
pub(crate) struct Answer {
    pub(crate) json: Value,
    pub(crate) response: Response,
}

impl Answer {
    /// The text, or the number, at a pointer into its JSON.
    #[track_caller]
    pub(crate) fn text(&self, pointer: &str) -> String {
        match self.json.pointer(pointer) {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Number(number)) => number.to_string(),
            _ => panic!("no {pointer} in {}", self.response.text()),
        }
    }

    /// What stands between two texts in its body, first.
    pub(crate) fn between(&self, start: &str, end: &str) -> Option<String> {
        let text = self.response.text();
        let (_, rest) = text.split_once(start)?;
        Some(rest.split_once(end)?.0.to_owned())
    }

    /// The paths in a multistatus answer.
    pub(crate) fn hrefs(&self) -> Vec<String> {
        let text = self.response.text();
        let parts = text.split("<d:href>").skip(1);
        parts.filter_map(|part| Some(part.split_once("</d:href>")?.0.to_owned())).collect()
    }
}

impl Run {
    /// nginx as the documentation of Nextcloud and the preset have it, with an audit file beside Tirreno.
    pub(crate) fn start(options: &Options, sensor: &Sensor) -> Self {
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize();
        let repository = repository.expect("the repository");
        let conf = fs::read_to_string(repository.join("ci/applications/nextcloud.conf"));
        let certificates = tempfile::tempdir().expect("a directory");
        let authority = Authority::new("nextcloud");
        let (certificate, key) = authority.leaf(&[HOST]).write(certificates.path(), "nextcloud");
        let path = |path: &Path| path.to_str().expect("a path of UTF-8").to_owned();
        let nginx = Nginx::builder()
            .binary(&options["nginx"])
            .module(&options["module"])
            .sensor(&sensor.url())
            .var("ROOT", &options["root"])
            .var("PHP", &options["php"])
            .var("PRESETS", &path(&repository.join("nginx-conf/presets")))
            .var("CERTIFICATE", &path(&certificate))
            .var("KEY", &path(&key))
            .file("nextcloud.conf", &conf.expect("nextcloud.conf"))
            .file("key", DEFAULT_KEY)
            .http("tirreno_target { url %SENSOR%; api_key_file key; }")
            .http("tirreno_target audit { type file; path logs/audit.log; }")
            .http("include nextcloud.conf;")
            .http(cases::LOG)
            .server("location = /status { tirreno_status; }")
            .start();
        let mut stage = Stage::new(nginx, HOST, authority.client_config());
        stage.secrets.insert(PASSWORD[1..PASSWORD.len() - 1].to_owned());
        let mut run = Self { stage, version: String::new(), _certificates: certificates };
        let mut nobody = Client::browser("198.51.100.66");
        run.version = run.quiet(&mut nobody, "GET /status.php", ()).text("/versionstring");
        run
    }

    /// The version's first number.
    pub(crate) fn major(&self) -> u32 {
        let number = self.version.split('.').next().and_then(|number| number.parse().ok());
        number.expect("a version")
    }

    /// Whether answers say in `X-User-Id` whose a request was.
    pub(crate) fn has_user_header(&self) -> bool {
        let parts: Vec<u32> = self.version.split('.').filter_map(|n| n.parse().ok()).collect();
        let [major, _, patch] = *parts else { panic!("a version: {}", self.version) };
        match major {
            ..30 => false,
            30 => patch >= 17,
            31 => patch >= 10,
            32 => patch >= 1,
            33.. => true,
        }
    }

    /// The secret on the page on which somebody is asked to let a program in.
    #[track_caller]
    pub(crate) fn state_token(&self, page: &Answer) -> String {
        let state = |name: &str| {
            let start = format!("id=\"initial-state-core-{name}\" value=\"");
            let text = page.between(&start, "\"")?;
            serde_json::from_slice::<Value>(&STANDARD.decode(text).ok()?).ok()
        };
        let new =
            state("loginFlowAuth").and_then(|auth| auth["stateToken"].as_str().map(str::to_owned));
        let old = || {
            let text = page.response.text();
            let (_, rest) = text.split_once("stateToken=")?;
            Some(rest.chars().take_while(char::is_ascii_alphanumeric).collect())
        };
        new.or_else(old).unwrap_or_else(|| panic!("no state in {}", page.response.text()))
    }

    /// Makes a request whose record is of no interest.
    #[track_caller]
    pub(crate) fn quiet(
        &mut self,
        client: &mut Client,
        line: &str,
        body: impl Into<Body>,
    ) -> Answer {
        self.request("-", client, line, body.into())
    }

    /// Makes a request: `line` is its method and its target. `expected` is the answer's status and, where there is to
    /// be an event, its type and its user.
    #[track_caller]
    pub(crate) fn act(
        &mut self,
        what: &str,
        client: &mut Client,
        line: &str,
        body: impl Into<Body>,
        expected: &str,
    ) -> Answer {
        let case = self.stage.next_case();
        let answer = self.request(&case, client, line, body.into());
        let status = answer.response.status;
        if !self.stage.expect(what, line, status, expected) {
            // What follows may fail for it.
            let text: String = answer.response.text().chars().take(600).collect();
            eprintln!("{what}: {line}: {status} instead of {expected}: {text}");
        }
        answer
    }

    /// Fetches what a page of this browser sends with each request.
    #[track_caller]
    pub(crate) fn fetch_token(&mut self, client: &mut Client) {
        client.token = None;
        let token = self.quiet(client, "GET /csrftoken", ()).text("/token");
        client.token = Some(token);
    }

    /// Signs in by the form, which is fetched first, and stays signed in.
    #[track_caller]
    pub(crate) fn login(
        &mut self,
        what: &str,
        client: &mut Client,
        path: &str,
        (user, password): (&str, &str),
        expected: &str,
    ) -> Answer {
        self.quiet(client, "GET /login", ());
        self.fetch_token(client);
        let token = client.token.clone().unwrap_or_default();
        let form = [
            ("user", user),
            ("password", password),
            ("rememberme", if client.remember { "1" } else { "0" }),
            ("timezone", "Europe/Berlin"),
            ("timezone_offset", "1"),
            ("requesttoken", &*token),
        ];
        let answer = self.act(what, client, &format!("POST {path}"), &form, expected);
        let location = answer.response.header("Location").unwrap_or_default();
        if answer.response.status == 303 && !location.contains("/login") {
            self.fetch_token(client);
        }
        answer
    }

    #[track_caller]
    fn request(&mut self, case: &str, client: &mut Client, line: &str, body: Body) -> Answer {
        let cookies = cookie_header(&client.cookies);
        let mut headers = vec![("User-Agent", client.agent), ("X-Forwarded-For", &client.address)];
        if line.contains("/ocs/") {
            headers.push(("OCS-APIRequest", "true"));
        }
        if !client.headers.iter().any(|(name, _)| *name == "Accept") {
            headers.push(("Accept", "application/json, text/plain, */*"));
        }
        if client.agent == FIREFOX && !line.starts_with("GET ") {
            headers.push(("Origin", ORIGIN));
        }
        if let Some(token) = &client.token {
            headers.push(("requesttoken", token));
        }
        if !cookies.is_empty() {
            headers.push(("Cookie", &cookies));
        }
        headers.extend(client.headers.iter().map(|(name, value)| (*name, &**value)));
        headers.extend(body.kind.map(|kind| ("Content-Type", kind)));
        let response =
            self.stage.send(&Request { case, line, headers: &headers, body: &body.bytes });
        take_cookies(&mut client.cookies, &response);
        let names = ["oc_sessionPassphrase", "nc_token", "nc_session_id"];
        let secrets = &mut self.stage.secrets;
        secrets.extend(names.iter().filter_map(|name| client.cookies.get(*name).cloned()));
        let json = serde_json::from_slice(&response.body).unwrap_or_default();
        Answer { json, response }
    }
}
