//! A working day of 40 users, shortened to minutes.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tirreno_tests::application::PASSWORD;

use crate::actions::{form, login};
use crate::run::{Client, Run};

/// The users.
const NAMES: [&str; 40] = [
    "ada", "alan", "amir", "anna", "barbara", "bela", "carlos", "chen", "clara", "david", "diana",
    "edith", "emil", "erika", "fatima", "felix", "frida", "george", "grace", "hanna", "henri",
    "ines", "ivan", "jana", "jonas", "karl", "kofi", "lena", "linus", "maria", "mehmet", "nadia",
    "nora", "olga", "omar", "paul", "petra", "rosa", "samir", "yuki",
];

const LAST_NAMES: [&str; 8] =
    ["Berger", "Costa", "Dubois", "Fischer", "Garcia", "Novak", "Okafor", "Rossi"];

const BROWSERS: [&str; 4] = [
    "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.5 Safari/605.1.15",
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Mattermost/5.8.1 Chrome/124.0.6367.243 Electron/30.1.2 Safari/537.36",
];

const CHANNELS: [&str; 5] = ["plans", "support", "releases", "lunch", "news"];

/// How many actions each user makes.
const ROUNDS: usize = 10;

/// The objects that the users work on.
#[derive(Default)]
struct Work {
    team: String,
    channels: Vec<String>,
    /// The newest post and file of each channel.
    posts: BTreeMap<String, String>,
    files: BTreeMap<String, String>,
}

/// Runs the day, and returns whether all records arrived.
pub(crate) fn all(run: &mut Run) -> bool {
    let mut admin = Client::browser("198.51.100.250");
    let account = |name: &str, n: usize| {
        json!({
            "email": format!("{name}@example.com"), "username": name, "password": PASSWORD,
            "first_name": name[..1].to_uppercase() + &name[1..],
            "last_name": LAST_NAMES[n % LAST_NAMES.len()],
        })
    };
    run.quiet(&mut admin, "POST /users", account("admin", 0));
    run.quiet(&mut admin, "POST /users/login", login("admin@example.com", PASSWORD));
    let mut work = prepare(run, &mut admin);
    for (n, name) in NAMES.iter().enumerate() {
        let id = run.quiet(&mut admin, "POST /users", account(name, n)).id();
        let line = format!("POST /teams/{}/members", work.team);
        run.quiet(&mut admin, &line, json!({ "team_id": work.team, "user_id": id }));
    }
    let mut people: Vec<Client> = (0..NAMES.len()).map(client).collect();
    for (n, person) in people.iter_mut().enumerate() {
        begin(run, person, n, &work);
    }
    for round in 0..ROUNDS {
        for (n, person) in people.iter_mut().enumerate() {
            act(run, person, n, round, &mut work);
        }
        attack(run, round);
    }
    let settings = json!({ "TeamSettings": { "MaxUsersPerTeam": 100 } });
    run.quiet(&mut admin, "PUT /config/patch", settings);
    for person in people.iter_mut().step_by(2) {
        run.quiet(person, "POST /users/logout", ());
    }
    report(run)
}

/// Two of three users have a browser, the third a telephone.
fn client(n: usize) -> Client {
    let address = format!("198.51.100.{}", n + 1);
    let client = match n % 3 {
        2 => Client::phone(&address),
        _ => Client::browser(&address).named(BROWSERS[n % BROWSERS.len()]),
    };
    client.with("Accept-Language", "en-GB,en;q=0.8")
}

fn prepare(run: &mut Run, admin: &mut Client) -> Work {
    let team = json!({ "name": "company", "display_name": "Company", "type": "O" });
    let mut work = Work { team: run.quiet(admin, "POST /teams", team).id(), ..Work::default() };
    for name in CHANNELS {
        let channel =
            json!({ "team_id": work.team, "name": name, "display_name": name, "type": "O" });
        let id = run.quiet(admin, "POST /channels", channel).id();
        let post = json!({ "channel_id": id, "message": "Welcome" });
        work.posts.insert(id.clone(), run.quiet(admin, "POST /posts", post).id());
        work.channels.push(id);
    }
    work
}

/// Everybody signs in; some mistype their passwords.
fn begin(run: &mut Run, person: &mut Client, n: usize, work: &Work) {
    let name = format!("{}@example.com", NAMES[n]);
    if n % 7 == 3 {
        run.quiet(person, "POST /users/login", login(&name, "Caps-lock-1"));
    }
    let answer = run.quiet(person, "POST /users/login", login(&name, PASSWORD));
    assert_eq!(answer.status, 200, "{name}: {}", answer.json);
    run.quiet(person, "GET /users/me", ());
    let id = run.id(NAMES[n]);
    for channel in &work.channels {
        run.quiet(person, &format!("POST /channels/{channel}/members"), json!({ "user_id": id }));
    }
}

/// One action after another.
fn act(run: &mut Run, person: &mut Client, n: usize, round: usize, work: &mut Work) {
    let channel = work.channels[(n + round) % work.channels.len()].clone();
    let post = work.posts[&channel].clone();
    run.quiet(person, "POST /channels/members/me/view", json!({ "channel_id": channel }));
    // Requests that clients make besides, and that are not events.
    run.quiet(person, &format!("GET /channels/{channel}/posts"), ());
    run.quiet(person, "POST /users/status/ids", json!([run.id(NAMES[(n + 1) % NAMES.len()])]));
    match (n + round) % 8 {
        0 | 4 => {
            let post = json!({ "channel_id": channel, "message": "Good morning" });
            let id = run.quiet(person, "POST /posts", post).id();
            run.quiet(person, &format!("PUT /posts/{id}/patch"), json!({ "message": "Good day" }));
            work.posts.insert(channel, id);
        }
        1 => {
            let body = form(&[("channel_id", &channel)], "files", "plan.txt", b"All is planned.");
            let file = run.quiet(person, "POST /files", body).text("/file_infos/0/id");
            let body = json!({ "channel_id": channel, "message": "A file", "file_ids": [file] });
            run.quiet(person, "POST /posts", body);
            work.files.insert(channel, file);
        }
        2 => {
            let words = json!({ "terms": "plan", "is_or_search": false });
            run.quiet(person, &format!("POST /teams/{}/posts/search", work.team), words);
        }
        3 | 6 => match work.files.get(&channel).cloned() {
            Some(file) => drop(run.quiet(person, &format!("GET /files/{file}"), ())),
            None => drop(run.quiet(person, &format!("POST /posts/{post}/pin"), ())),
        },
        5 => {
            let reply = json!({ "channel_id": channel, "message": "Thank you", "root_id": post });
            run.quiet(person, "POST /posts", reply);
        }
        _ => {
            let id = run.id(NAMES[n]);
            let zone = json!({ "timezone": { "useAutomaticTimezone": "true" } });
            run.quiet(person, &format!("PUT /users/{id}/patch"), zone);
            let search: Value = json!({ "term": &NAMES[(n + 5) % NAMES.len()][..2] });
            run.quiet(person, "POST /users/search", search);
        }
    }
}

/// An attacker tries names and passwords.
fn attack(run: &mut Run, round: usize) {
    let mut client = Client::script("192.0.2.99", "");
    client.authorization = None;
    for name in ["root", "guest", "test"] {
        let name = format!("{name}{round}@example.com");
        run.quiet(&mut client, "POST /users/login", login(&name, "Password-1"));
    }
    // No cookie and no name makes the attacker a user.
    let victim = run.id(NAMES[round]);
    let mut forger = Client::browser("192.0.2.99").with_cookie("MMUSERID", &victim);
    run.quiet(&mut forger, "POST /posts", json!({ "channel_id": "", "message": "x" }));
}

/// Prints what each target counted, as Markdown.
fn report(run: &mut Run) -> bool {
    let targets = run.stage.settle();
    println!("Mattermost {}: {} requests.\n", run.version, run.stage.requests());
    println!("| target | captured | delivered | merged | withdrawn | rejected | dropped |");
    println!("|---|---|---|---|---|---|---|");
    let mut good = true;
    for (name, target) in &targets {
        let count = |name: &str| target[name].as_u64().unwrap_or(0);
        let counts = ["captured", "delivered", "merged", "withdrawn", "rejected", "dropped"];
        let row: Vec<_> = counts.iter().map(|name| count(name).to_string()).collect();
        println!("| `{name}` | {} |", row.join(" | "));
        good &= count("rejected") == 0 && count("dropped") == 0;
    }
    good
}
