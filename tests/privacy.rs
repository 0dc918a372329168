//! Data that a target must not get reach neither the target nor its spool; data that another target may get
//! do reach that one.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use rusqlite::Connection as Database;
use tirreno_tests::client::get;
use tirreno_tests::nginx::Nginx;
use tirreno_tests::sensor::{RequestRecord, Sensor, SensorOptions};
use tirreno_tests::wait::{SOON, wait_until};

const KEY: &str = "f5d3a1c87e2b4960f5d3a1c87e2b4960f5d3a1c87e2b4960f5d3a1c87e2b4960";
const USER: &str = "hedy@example.org";
/// The user in a URL, as browsers and this client write it.
const SPELLINGS: [&str; 2] = [USER, "Hedy%40example.org"];
const ADDRESSES: [&str; 2] = ["203.0.113.77", "2001:db8:1:2fff::77"];
/// Data that the masked targets must not get, in any case of letters.
const PLAIN: [&str; 9] = [
    USER,
    "hedy%40example.org",
    "hedy%2540example.org",
    ADDRESSES[0],
    "2001:db8:1:2fff",
    "2001%3adb8%3a1%3a2fff",
    "lamarr",
    "find-me",
    "spy-agent",
];
const MASKS: &str = "ip_mask 24 56; hash_user user.key; omit userAgent browserLanguage; query off;";

fn sensor() -> Sensor {
    Sensor::start(SensorOptions::default())
}

/// The name's hash, by the command that docs/privacy.md shows.
fn openssl(name: &str, key_file: &str) -> String {
    let line =
        "printf %s \"$NAME\" | openssl dgst -sha256 -hmac \"$(tr -d '[:space:]' <\"$FILE\")\"";
    let output = Command::new("sh")
        .args(["-c", line])
        .env("NAME", name)
        .env("FILE", key_file)
        .output()
        .expect("sh runs");
    let text = String::from_utf8(output.stdout).expect("text");
    text.trim_end().rsplit(' ').next().expect("a hash").to_owned()
}

#[track_caller]
fn assert_knows_nothing(bytes: &[u8]) {
    let bytes = bytes.to_ascii_lowercase();
    for plain in PLAIN {
        let found = bytes.windows(plain.len()).any(|w| w == plain.as_bytes());
        assert!(!found, "{plain} in {}", String::from_utf8_lossy(&bytes));
    }
}

/// The events' POSTs, once there are `count`.
fn events(sensor: &Sensor, count: usize) -> Vec<RequestRecord> {
    wait_until(SOON, "the events", || sensor.stored_count() >= count);
    sensor.requests().into_iter().filter(|post| post.path.ends_with("/sensor/")).collect()
}

#[test]
fn targets_know_what_each_may_know() {
    let [plain, masked, spooled] = [sensor(), sensor(), sensor()];
    spooled.refuse();
    let dir = tempfile::tempdir().unwrap();
    // The workers may be another user.
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    let spool = dir.path().join("spool");
    let nginx = Nginx::builder()
        .var("PLAIN", &plain.url())
        .var("MASKED", &masked.url())
        .var("SPOOLED", &spooled.url())
        .var("SPOOL", spool.to_str().unwrap())
        .var("MASKS", MASKS)
        .file("user.key", &format!("{KEY} \n"))
        .http(
            "tirreno_target plain { url %PLAIN%; api_key test-key; interval 20ms; }
             tirreno_target masked { url %MASKED%; api_key test-key; interval 20ms; %MASKS% }
             tirreno_target spooled {
                 url %SPOOLED%; api_key test-key; interval 20ms; spool %SPOOL%; %MASKS%
             }
             tirreno on;
             tirreno_user $cookie_user;
             tirreno_ip $http_x_client;
             tirreno_param emailAddress $cookie_user;
             tirreno_param fullName 'Hedy Lamarr';
             tirreno_param pageTitle title;",
        )
        .server("location / { return 200; } location = /status { tirreno off; tirreno_status; }")
        .start();
    let mut made = Vec::new();
    for address in ADDRESSES {
        for spelling in SPELLINGS {
            let path = format!("/users/{spelling}/x?q=find-me");
            let referer = format!("https://h/{spelling}?q=find-me");
            let headers = [
                ("Cookie", format!("user={USER}")),
                ("X-Client", address.to_owned()),
                ("Referer", referer.clone()),
                ("User-Agent", "spy-agent".to_owned()),
                ("Accept-Language", "find-me".to_owned()),
            ];
            let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, &**value)).collect();
            assert_eq!(get(nginx.port(), &path, &headers).unwrap().status, 200);
            made.push((address, path, referer));
        }
    }

    let hash = openssl(USER, nginx.prefix().join("user.key").to_str().unwrap());
    assert_eq!(hash.len(), 64, "{hash}");
    wait_until(SOON, "events in the spool", || {
        let status = nginx.status("/status");
        status["targets"]["spooled"]["spool"]["events"] == made.len()
    });
    for file in fs::read_dir(&spool).unwrap() {
        assert_knows_nothing(&fs::read(file.unwrap().path()).unwrap());
    }
    let users: Vec<String> = {
        let mut files = fs::read_dir(&spool).unwrap().map(|file| file.unwrap().path());
        let file = files.find(|path| path.extension().is_some_and(|end| end == "db"));
        let database = Database::open(file.unwrap()).unwrap();
        let mut select = database.prepare("SELECT user FROM pending").unwrap();
        select.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
    };
    assert_eq!(users, vec![hash.clone(); made.len()]);

    spooled.listen_again();
    for sensor in [&masked, &spooled] {
        let posts = events(sensor, made.len());
        assert_eq!(posts.iter().filter(|post| post.answer == Some(204)).count(), made.len());
        for (post, (address, ..)) in posts.iter().zip(&made) {
            assert_knows_nothing(&post.body);
            let param = |name| post.param(name);
            assert_eq!(param("userName").as_deref(), Some(&*hash));
            assert_eq!(param("url"), Some(format!("/users/{hash}/x")));
            assert_eq!(param("httpReferer"), Some(format!("https://h/{hash}")));
            let masked = if address.contains('.') { "203.0.113.0" } else { "2001:db8:1:2f00::" };
            assert_eq!(param("ipAddress").as_deref(), Some(masked));
            assert_eq!(param("pageTitle").as_deref(), Some("title"));
            for name in ["emailAddress", "fullName", "userAgent", "browserLanguage"] {
                assert_eq!(param(name), None, "{name}");
            }
        }
    }
    for (post, (address, path, referer)) in events(&plain, made.len()).iter().zip(&made) {
        let param = |name| post.param(name);
        assert_eq!(param("userName").as_deref(), Some(USER));
        assert_eq!(param("url").as_ref(), Some(path));
        assert_eq!(param("httpReferer"), Some(referer.replace('%', "%25")));
        assert_eq!(param("ipAddress").as_deref(), Some(*address));
        assert_eq!(param("fullName").as_deref(), Some("Hedy Lamarr"));
        assert_eq!(param("emailAddress").as_deref(), Some(USER));
        assert_eq!(param("userAgent").as_deref(), Some("spy-agent"));
        assert_eq!(param("browserLanguage").as_deref(), Some("find-me"));
    }
    assert!(!nginx.error_log().contains(KEY));
    assert!(!nginx.status("/status").to_string().contains(&hash));
}

#[test]
fn without_a_name_an_event_is_nobodys() {
    let sensor = sensor();
    let nginx = Nginx::builder()
        .sensor(&sensor.url())
        .http(
            "tirreno_target { url %SENSOR%; api_key test-key; interval 20ms; omit userName; ip_mask 0 0; }
             tirreno on;
             tirreno_user $cookie_user;
             tirreno_param emailAddress $cookie_user;",
        )
        .server("location / { return 200; }")
        .start();
    assert_eq!(get(nginx.port(), "/", &[("Cookie", &format!("user={USER}"))]).unwrap().status, 200);
    let post = events(&sensor, 1).remove(0);
    assert_knows_nothing(&post.body);
    assert_eq!((post.param("userName"), post.param("emailAddress")), (None, None));
    assert_eq!(post.param("ipAddress").as_deref(), Some("0.0.0.0"));
}
