//! Actions of people and programs, including refused ones and forgeries, and their expected records.
//!
//! Each line has the action, the client, the request, its body, and the expected result: the status, the
//! event's type, and its user. Without a type, no event is expected.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;
use serde_json::{Value, json};
use tirreno_tests::application::{Body, PASSWORD};
use tirreno_tests::backend::{Answer, Backend, BackendRequest};

use crate::run::{Client, Run};

/// A picture of one pixel.
const DOT: &str = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";

const TEXT: &[u8] = b"Figures of the third quarter: all of them are good.\n";

/// Texts and contents that must not leave the requests.
const WRITTEN: [&str; 5] = ["third quarter", "Hello, bob", "On my way", "I am sorry", "build is green"];

/// An id that does not exist.
const NONE: &str = "zzzzzzzzzzzzzzzzzzzzzzzzzz";

const UPGRADE: [(&str, &str); 4] = [
    ("Connection", "Upgrade"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
];

/// The users with a session in a browser, and the objects that they work on.
struct World {
    admin: Client,
    alice: Client,
    bob: Client,
    carol: Client,
    /// Alice's telephone.
    phone: Client,
    /// A client without a session.
    nobody: Client,
    team: String,
    channel: String,
    post: String,
    file: String,
}

/// All actions.
pub(crate) fn all(run: &mut Run) {
    run.stage.secrets.extend(WRITTEN.map(str::to_owned));
    let mut world = accounts(run);
    second_factor(run, &mut world);
    teams(run, &mut world);
    channels(run, &mut world);
    posts(run, &mut world);
    files(run, &mut world);
    searches(run, &mut world);
    noise(run, &mut world);
    profiles(run, &mut world);
    tokens(run, &mut world);
    bots_and_hooks(run, &mut world);
    oauth(run, &mut world);
    sso(run, &mut world);
    server(run, &mut world);
    sockets(run, &mut world);
    forgeries(run, &mut world);
    refusals(run, &mut world);
    sessions(run, &mut world);
    ends(run, &mut world);
}

pub(crate) fn login(login_id: &str, password: &str) -> Value {
    json!({ "login_id": login_id, "password": password, "device_id": "" })
}

fn signup(name: &str, password: &str) -> Value {
    json!({ "email": format!("{name}@example.com"), "username": name, "password": password })
}

/// A form with one file, and other fields before it.
pub(crate) fn form(fields: &[(&str, &str)], field: &str, name: &str, content: &[u8]) -> Body {
    let mut body = Vec::new();
    for (field, value) in fields {
        let part = format!(
            "--limit\r\nContent-Disposition: form-data; name=\"{field}\"\r\n\r\n{value}\r\n"
        );
        body.extend_from_slice(part.as_bytes());
    }
    let head = format!(
        "--limit\r\nContent-Disposition: form-data; name=\"{field}\"; filename=\"{name}\"\r\n\
         Content-Type: application/octet-stream\r\n\r\n"
    );
    body.extend_from_slice(head.as_bytes());
    body.extend_from_slice(content);
    body.extend_from_slice(b"\r\n--limit--\r\n");
    Body::new("multipart/form-data; boundary=limit", body)
}

fn dot() -> Vec<u8> {
    STANDARD.decode(DOT).expect("base64")
}

/// Signing up and in.
fn accounts(run: &mut Run) -> World {
    let mut nobody = Client::browser("198.51.100.66");
    let mut admin = Client::browser("198.51.100.1");
    let mut alice = Client::browser("198.51.100.2");
    let mut bob = Client::browser("198.51.100.3");
    let mut carol = Client::browser("198.51.100.4");
    run.act("The first account is made", &mut admin, "POST /users", signup("admin", PASSWORD), "201 account_registration admin");
    run.act("The administrator signs in", &mut admin, "POST /users/login", login("admin@example.com", PASSWORD), "200 account_login admin");
    for (name, client) in [("alice", &mut alice), ("bob", &mut bob), ("carol", &mut carol)] {
        run.act(&format!("{name} makes an account"), client, "POST /users", signup(name, PASSWORD), &format!("201 account_registration {name}"));
    }
    run.act("The administrator makes an account for dave", &mut admin, "POST /users", signup("dave", PASSWORD), "201 account_registration admin");
    run.act("An account with a weak password, refused", &mut nobody, "POST /users", signup("erin", "a"), "400");
    run.act("Sign-in with an e-mail address", &mut alice, "POST /users/login", login("alice@example.com", PASSWORD), "200 account_login alice");
    run.act("… with a wrong password", &mut nobody, "POST /users/login", login("alice@example.com", "wrong"), "401 account_login_fail alice");
    run.act("… as ALICE@Example.com, wrong", &mut nobody, "POST /users/login", login("ALICE@Example.com", "wrong"), "401 account_login_fail alice");
    run.act("… with a name that nobody has signed in with yet, wrong", &mut nobody, "POST /users/login", login("alice", "wrong"), "401 account_login_fail unknown");
    run.act("… of an account that does not exist", &mut nobody, "POST /users/login", login("mallory", "wrong"), "401 account_login_fail unknown");
    run.act("… without a password", &mut nobody, "POST /users/login", login("alice@example.com", ""), "400 account_login_fail alice");
    run.act("… with a form instead of JSON", &mut nobody, "POST /users/login", Body::new("application/x-www-form-urlencoded", b"login_id=alice&password=x".to_vec()), "400 account_login_fail unknown-unreadable");
    let mut second = Client::browser("198.51.100.2");
    run.act("Sign-in with a name", &mut second, "POST /users/login", login("alice", PASSWORD), "200 account_login alice");
    run.act("… wrong afterwards", &mut nobody, "POST /users/login", login("alice", "wrong"), "401 account_login_fail alice");
    let id = run.id("bob");
    run.act("Sign-in with an id", &mut bob, "POST /users/login", json!({ "id": id, "password": PASSWORD }), "200 account_login bob");
    run.act("Sign-in, JSON called text/plain", &mut carol, "POST /users/login", Body::new("text/plain", login("carol@example.com", PASSWORD).to_string().into_bytes()), "200 account_login carol");
    let mut phone = Client::phone("203.0.113.2");
    run.act("Sign-in of an app, by token", &mut phone, "POST /users/login", login("alice@example.com", PASSWORD), "200 account_login alice");
    run.act("The app asks who it is", &mut phone, "GET /users/me", (), "200");
    let mut old = Client::browser("198.51.100.3").with_cookie("MMUSERID", &run.id("alice"));
    run.act("bob signs in where alice's cookie was left", &mut old, "POST /users/login", login("bob@example.com", PASSWORD), "200 account_login bob");
    let mut old = Client::browser("198.51.100.3").with_cookie("MMUSERID", &run.id("alice"));
    run.act("… wrong", &mut old, "POST /users/login", login("bob@example.com", "wrong"), "401 account_login_fail bob");
    run.act("The web page asks who it is", &mut alice, "GET /users/me", (), "200");
    World {
        admin,
        alice,
        bob,
        carol,
        phone,
        nobody,
        team: String::new(),
        channel: String::new(),
        post: String::new(),
        file: String::new(),
    }
}

fn second_factor(run: &mut Run, world: &mut World) {
    let id = run.id("carol");
    let carol = &mut world.carol;
    let secret = run.act("Second factor: a secret is made", carol, &format!("POST /users/{id}/mfa/generate"), (), "200 account_edit carol").text("/secret");
    run.act("… switched on", carol, &format!("PUT /users/{id}/mfa"), json!({ "activate": true, "code": code(&secret) }), "200 account_edit carol");
    let mut thief = Client::browser("192.0.2.99");
    run.act("A thief has the password, and no code", &mut thief, "POST /users/login", login("carol@example.com", PASSWORD), "401 account_login_fail carol");
    let mut wrong = login("carol@example.com", PASSWORD);
    wrong["token"] = "000000".into();
    run.act("… and guesses a code", &mut thief, "POST /users/login", wrong, "401 account_login_fail carol");
    let mut home = Client::browser("198.51.100.4");
    run.act("Sign-in, first step: the password is right", &mut home, "POST /users/login", login("carol@example.com", PASSWORD), "401");
    let mut right = login("carol@example.com", PASSWORD);
    right["token"] = code(&secret).into();
    run.act("… second step: the code", &mut home, "POST /users/login", right, "200 account_login carol");
    let mut app = Client::phone("203.0.113.4");
    let mut step = login("carol@example.com", PASSWORD);
    step["token"] = "".into();
    run.act("The app's first step: an empty code", &mut app, "POST /users/login", step.clone(), "401");
    step["token"] = code(&secret).into();
    run.act("… second step", &mut app, "POST /users/login", step, "200 account_login carol");
    run.act("Does an account have a second factor?", &mut home, "POST /users/mfa", json!({ "login_id": "carol@example.com" }), "200");
    run.act("Second factor: switched off", carol, &format!("PUT /users/{id}/mfa"), json!({ "activate": false }), "200 account_edit carol");
}

/// The code of RFC 6238 for a secret in base 32.
fn code(secret: &str) -> String {
    let (mut bits, mut count, mut key) = (0_u32, 0, Vec::new());
    for digit in secret.trim_end_matches('=').bytes() {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'2'..=b'7' => digit - b'2' + 26,
            _ => panic!("no digit of base 32"),
        };
        bits = bits << 5 | u32::from(value);
        count += 5;
        if count >= 8 {
            count -= 8;
            key.push((bits >> count & 0xFF) as u8);
        }
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &key);
    let tag = hmac::sign(&key, &(now / 30).to_be_bytes());
    let tag = tag.as_ref();
    let at = usize::from(tag[19] & 0xF);
    let number = u32::from_be_bytes(tag[at..at + 4].try_into().expect("four bytes")) & 0x7FFF_FFFF;
    format!("{:06}", number % 1_000_000)
}

fn teams(run: &mut Run, world: &mut World) {
    let [alice_id, bob_id, carol_id, dave_id] =
        ["alice", "bob", "carol", "dave"].map(|name| run.id(name));
    let (admin, alice, bob) = (&mut world.admin, &mut world.alice, &mut world.bob);
    let team = run.act("A team is made", alice, "POST /teams", json!({ "name": "sales", "display_name": "Sales", "type": "O" }), "201 page_edit alice");
    let (id, invite) = (team.id(), team.text("/invite_id"));
    run.act("bob joins by an invitation's link", bob, &format!("POST /teams/members/invite?invite_id={invite}"), (), "201 page_edit bob");
    run.act("A member is added", alice, &format!("POST /teams/{id}/members"), json!({ "team_id": id, "user_id": carol_id }), "201 page_edit alice");
    run.act("Members are added", admin, &format!("POST /teams/{id}/members/batch"), json!([{ "team_id": id, "user_id": dave_id }]), "201 page_edit admin");
    run.act("A member's roles", alice, &format!("PUT /teams/{id}/members/{bob_id}/roles"), json!({ "roles": "team_user team_admin" }), "200 page_edit alice");
    run.act("… otherwise", alice, &format!("PUT /teams/{id}/members/{bob_id}/schemeRoles"), json!({ "scheme_admin": false, "scheme_user": true }), "200 page_edit alice");
    run.act("The team is renamed", alice, &format!("PUT /teams/{id}/patch"), json!({ "display_name": "Sales & more" }), "200 page_edit alice");
    run.act("Who may join", alice, &format!("PUT /teams/{id}/privacy"), json!({ "privacy": "I" }), "200 page_edit alice");
    run.act("A new link for invitations", alice, &format!("POST /teams/{id}/regenerate_invite_id"), (), "200 page_edit alice");
    run.act("Invitations by e-mail", alice, &format!("POST /teams/{id}/invite/email"), json!(["new@example.com"]), "200 page_edit alice");
    run.act("… withdrawn", admin, "DELETE /teams/invites/email", (), "200 page_delete admin");
    run.act("A guest is invited, without a license", alice, &format!("POST /teams/{id}/invite-guests/email"), json!({ "emails": ["g@example.com"], "channels": [] }), "501 page_error alice");
    run.act("The team's picture", alice, &format!("POST /teams/{id}/image"), form(&[], "image", "dot.png", &dot()), "200 page_edit alice");
    run.act("… removed", alice, &format!("DELETE /teams/{id}/image"), (), "200 page_delete alice");
    run.act("A member is removed", alice, &format!("DELETE /teams/{id}/members/{dave_id}"), (), "200 page_delete alice");
    let other = run.act("Another team", admin, "POST /teams", json!({ "name": "old", "display_name": "Old", "type": "O" }), "201 page_edit admin").id();
    run.act("… archived", admin, &format!("DELETE /teams/{other}"), (), "200 page_delete admin");
    run.act("… restored", admin, &format!("POST /teams/{other}/restore"), (), "200 page_edit admin");
    run.act("The teams of a user are read", alice, &format!("GET /users/{alice_id}/teams"), (), "200");
    world.team = id;
}

fn channels(run: &mut Run, world: &mut World) {
    let [admin_id, alice_id, bob_id, carol_id] =
        ["admin", "alice", "bob", "carol"].map(|name| run.id(name));
    let team = world.team.clone();
    let (admin, alice, bob) = (&mut world.admin, &mut world.alice, &mut world.bob);
    let id = run.act("A channel is made", alice, "POST /channels", json!({ "team_id": team, "name": "plans", "display_name": "Plans", "type": "O" }), "201 page_edit alice").id();
    run.act("bob joins it", bob, &format!("POST /channels/{id}/members"), json!({ "user_id": bob_id }), "201 page_edit bob");
    run.act("A member is added", alice, &format!("POST /channels/{id}/members"), json!({ "user_id": carol_id }), "201 page_edit alice");
    run.act("A channel is opened", bob, "POST /channels/members/me/view", json!({ "channel_id": id }), "200 page_view bob");
    run.act("… on the telephone", &mut world.phone, "POST /channels/members/me/view", json!({ "channel_id": id }), "200 page_view alice");
    run.act("Its header", alice, &format!("PUT /channels/{id}/patch"), json!({ "header": "Plans" }), "200 page_edit alice");
    run.act("All of it", alice, &format!("PUT /channels/{id}"), json!({ "id": id, "team_id": team, "name": "plans", "display_name": "All plans", "type": "O" }), "200 page_edit alice");
    run.act("A member's roles", alice, &format!("PUT /channels/{id}/members/{bob_id}/roles"), json!({ "roles": "channel_user channel_admin" }), "200 page_edit alice");
    run.act("… otherwise", alice, &format!("PUT /channels/{id}/members/{bob_id}/schemeRoles"), json!({ "scheme_admin": false, "scheme_user": true }), "200 page_edit alice");
    run.act("Its notifications", bob, &format!("PUT /channels/{id}/members/{bob_id}/notify_props"), json!({ "desktop": "mention", "user_id": bob_id, "channel_id": id }), "200 page_edit bob");
    run.act("Who may read it: members only", admin, &format!("PUT /channels/{id}/privacy"), json!({ "privacy": "P" }), "200 page_edit admin");
    run.act("… everybody", admin, &format!("PUT /channels/{id}/privacy"), json!({ "privacy": "O" }), "200 page_edit admin");
    run.act("Moderation, without a license", admin, &format!("PUT /channels/{id}/moderations/patch"), json!([]), "501 page_error admin");
    run.act("A direct channel", alice, "POST /channels/direct", json!([alice_id, bob_id]), "201 page_edit alice");
    run.act("A group channel", alice, "POST /channels/group", json!([alice_id, bob_id, admin_id]), "201 page_edit alice");
    run.act("A member is removed", alice, &format!("DELETE /channels/{id}/members/{carol_id}"), (), "200 page_delete alice");
    run.act("… and comes back", &mut world.carol, &format!("POST /channels/{id}/members"), json!({ "user_id": carol_id }), "201 page_edit carol");
    let other = run.act("Another channel", bob, "POST /channels", json!({ "team_id": team, "name": "past", "display_name": "Past", "type": "O" }), "201 page_edit bob").id();
    run.act("… archived", bob, &format!("DELETE /channels/{other}"), (), "200 page_delete bob");
    run.act("… restored", admin, &format!("POST /channels/{other}/restore"), (), "200 page_edit admin");
    run.act("… moved to another team", admin, &format!("POST /channels/{other}/move"), json!({ "team_id": team, "force": true }), "200 page_edit admin");
    world.channel = id;
}

fn posts(run: &mut Run, world: &mut World) {
    let channel = world.channel.clone();
    let (alice, bob) = (&mut world.alice, &mut world.bob);
    let post = run.act("A post", bob, "POST /posts", json!({ "channel_id": channel, "message": "Hello" }), "201 page_edit bob").id();
    let reply = run.act("A reply", alice, "POST /posts", json!({ "channel_id": channel, "message": "Hello, bob", "root_id": post }), "201 page_edit alice").id();
    run.act("A post from the telephone", &mut world.phone, "POST /posts", json!({ "channel_id": channel, "message": "On my way" }), "201 page_edit alice");
    run.act("An edit", bob, &format!("PUT /posts/{post}/patch"), json!({ "message": "Hello!" }), "200 page_edit bob");
    run.act("An edit of all of it", bob, &format!("PUT /posts/{post}"), json!({ "id": post, "message": "Hello!!" }), "200 page_edit bob");
    run.act("Pinned", bob, &format!("POST /posts/{post}/pin"), (), "200 page_edit bob");
    run.act("Not pinned", bob, &format!("POST /posts/{post}/unpin"), (), "200 page_edit bob");
    let bob_id = run.id("bob");
    run.act("A reaction", bob, "POST /reactions", json!({ "user_id": bob_id, "post_id": reply, "emoji_name": "smile" }), "200");
    run.act("A thread is followed", bob, &format!("PUT /users/me/teams/{}/threads/{post}/following", world.team), (), "200 page_edit bob");
    run.act("A post for one reader", &mut world.admin, "POST /posts/ephemeral", json!({ "user_id": bob_id, "post": { "channel_id": channel, "message": "psst" } }), "201 page_edit admin");
    run.act("A post is deleted", alice, &format!("DELETE /posts/{reply}"), (), "200 page_delete alice");
    run.act("The posts of a channel are read", alice, &format!("GET /channels/{channel}/posts"), (), "200");
    world.post = post;
}

fn files(run: &mut Run, world: &mut World) {
    let channel = world.channel.clone();
    let (alice, bob, carol) = (&mut world.alice, &mut world.bob, &mut world.carol);
    let file = run.act("A file is uploaded", bob, "POST /files", form(&[("channel_id", &channel)], "files", "plan.txt", TEXT), "201 page_edit bob").text("/file_infos/0/id");
    run.act("… and posted", bob, "POST /posts", json!({ "channel_id": channel, "message": "The plan", "file_ids": [file] }), "201 page_edit bob");
    run.act("A file without a form", bob, &format!("POST /files?channel_id={channel}&filename=notes.txt"), Body::new("text/plain", TEXT.to_vec()), "201 page_edit bob");
    let read = run.act("A download", alice, &format!("GET /files/{file}"), (), "200 page_view alice");
    run.act("… again within a minute", alice, &format!("GET /files/{file}?download=1"), (), "200");
    run.act("… in parts (206)", &mut carol.with("Range", "bytes=0-9"), &format!("GET /files/{file}"), (), "206 page_view carol");
    run.act("… the next part", &mut carol.with("Range", "bytes=10-19"), &format!("GET /files/{file}"), (), "206");
    let date = read.header("Last-Modified").unwrap_or_default();
    run.act("… unchanged (304)", &mut bob.with("If-Modified-Since", &date), &format!("GET /files/{file}"), (), "304 page_view bob");
    run.act("… that does not exist", alice, &format!("GET /files/{NONE}"), (), "404");
    run.act("Its name and size are read", alice, &format!("GET /files/{file}/info"), (), "200");
    let link = run.act("A public link", bob, &format!("GET /files/{file}/link"), (), "200 page_view bob").text("/link");
    let (_, path) = link.split_once("mattermost.example.com").expect("the link");
    run.act("Somebody follows it", &mut world.nobody, &format!("GET ~{path}"), (), "200 page_view nobody");
    run.act("… with a wrong hash", &mut world.nobody, &format!("GET ~/files/{file}/public?h=wrong"), (), "400");
    let upload = run.act("An upload in parts begins", bob, "POST /uploads", json!({ "channel_id": channel, "filename": "big.txt", "file_size": TEXT.len() }), "201 page_edit bob").id();
    run.act("… goes on", bob, &format!("POST /uploads/{upload}"), Body::new("application/octet-stream", TEXT.to_vec()), "200 page_edit bob");
    world.file = file;
}

fn searches(run: &mut Run, world: &mut World) {
    let team = world.team.clone();
    let (admin, alice) = (&mut world.admin, &mut world.alice);
    run.act("Search in posts", alice, &format!("POST /teams/{team}/posts/search"), json!({ "terms": "plan", "is_or_search": false }), "200 page_search alice");
    run.act("Search in files", alice, &format!("POST /teams/{team}/files/search"), json!({ "terms": "plan", "is_or_search": false }), "200 page_search alice");
    run.act("Search for accounts", alice, "POST /users/search", json!({ "term": "bo", "team_id": team }), "200 page_search alice");
    run.act("Search for channels of a team", alice, &format!("POST /teams/{team}/channels/search"), json!({ "term": "plan" }), "200 page_search alice");
    run.act("Search for all channels", admin, "POST /channels/search", json!({ "term": "plan" }), "200 page_search admin");
    run.act("Search for teams", admin, "POST /teams/search", json!({ "term": "sal" }), "200 page_search admin");
    run.act("Search for an emoji", alice, "POST /emoji/search", json!({ "term": "sm" }), "200");
}

/// Requests that clients make on their own.
fn noise(run: &mut Run, world: &mut World) {
    let [alice_id, bob_id] = ["alice", "bob"].map(|name| run.id(name));
    let (channel, team, post) = (&world.channel, &world.team, &world.post);
    let alice = &mut world.alice;
    let etag = run.act("Who am I?", alice, "GET /users/me", (), "200").header("Etag").unwrap_or_default();
    run.act("… unchanged (304)", &mut alice.with("If-None-Match", &etag), "GET /users/me", (), "304");
    run.act("Who is online?", alice, "POST /users/status/ids", json!([bob_id]), "200");
    run.act("I am away", alice, "PUT /users/me/status", json!({ "user_id": alice_id, "status": "away" }), "200");
    run.act("I am typing", alice, "POST /users/me/typing", json!({ "channel_id": channel }), "200");
    run.act("Who has these ids?", alice, "POST /users/ids", json!([bob_id]), "200");
    run.act("Who has these names?", alice, "POST /users/usernames", json!(["bob"]), "200");
    run.act("Members of a channel", alice, &format!("POST /channels/{channel}/members/ids"), json!([bob_id]), "200");
    run.act("Reactions to posts", alice, "POST /posts/ids/reactions", json!([post]), "200");
    run.act("A post is unread again", alice, &format!("POST /users/me/posts/{post}/set_unread"), json!({}), "200");
    run.act("A script of the page failed", alice, "POST /logs", json!({ "level": "ERROR", "message": "x" }), "200");
    run.act("Is the server there?", alice, "GET /system/ping", (), "200");
    run.act("What may be configured", alice, "GET /config/client?format=old", (), "200");
    run.act("Categories are read", alice, &format!("GET /users/me/teams/{team}/channels/categories"), (), "200");
    run.act("The page itself", alice, "GET ~/sales/channels/plans", (), "404");
    run.act("Preferences change", alice, "PUT /users/me/preferences", json!([{ "user_id": alice_id, "category": "display_settings", "name": "use_military_time", "value": "true" }]), "200 page_edit alice");
    run.act("A category is made", alice, &format!("POST /users/me/teams/{team}/channels/categories"), json!({ "user_id": alice_id, "team_id": team, "display_name": "Mine", "channel_ids": [channel] }), "200 page_edit alice");
    run.act("All threads are read", alice, &format!("PUT /users/me/teams/{team}/threads/read"), (), "200 page_edit alice");
}

fn profiles(run: &mut Run, world: &mut World) {
    let [alice_id, bob_id, carol_id, dave_id] =
        ["alice", "bob", "carol", "dave"].map(|name| run.id(name));
    let (admin, alice, bob) = (&mut world.admin, &mut world.alice, &mut world.bob);
    run.act("A nickname", alice, &format!("PUT /users/{alice_id}/patch"), json!({ "nickname": "Al" }), "200 account_edit alice");
    run.act("Another e-mail address", alice, &format!("PUT /users/{alice_id}/patch"), json!({ "email": "alice2@example.com", "password": PASSWORD }), "200 account_email_change alice");
    run.act("… with a wrong password", alice, &format!("PUT /users/{alice_id}/patch"), json!({ "email": "alice3@example.com", "password": "wrong" }), "401 page_error alice");
    run.act("The administrator changes bob's e-mail address", admin, &format!("PUT /users/{bob_id}/patch"), json!({ "email": "bob2@example.com" }), "200 account_email_change admin");
    let mut whole = run.quiet(bob, "GET /users/me", ()).json;
    whole["nickname"] = "Bobby".into();
    run.act("The whole profile is written", bob, &format!("PUT /users/{bob_id}"), whole, "200 account_edit bob");
    run.act("A picture", alice, &format!("POST /users/{alice_id}/image"), form(&[], "image", "dot.png", &dot()), "200 account_edit alice");
    run.act("… removed", alice, &format!("DELETE /users/{alice_id}/image"), (), "200 account_edit alice");
    run.act("Another password", alice, &format!("PUT /users/{alice_id}/password"), json!({ "current_password": PASSWORD, "new_password": "Correct-horse-2" }), "200 account_password_change alice");
    run.act("… with a wrong one", alice, &format!("PUT /users/{alice_id}/password"), json!({ "current_password": "wrong", "new_password": "Correct-horse-3" }), "400 page_error alice");
    run.act("The administrator sets dave's password", admin, &format!("PUT /users/{dave_id}/password"), json!({ "new_password": "Correct-horse-4" }), "200 account_password_change admin");
    run.act("Somebody forgot carol's password; there is no mail server", &mut world.nobody, "POST /users/password/reset/send", json!({ "email": "carol@example.com" }), "500 page_error nobody");
    if let Some(token) = run.sql("SELECT token FROM tokens WHERE type = 'password_recovery'") {
        run.act("… and resets it with the e-mail's token", &mut world.nobody, "POST /users/password/reset", json!({ "token": token, "new_password": PASSWORD }), "200 account_password_change nobody");
        run.act("… once more", &mut world.nobody, "POST /users/password/reset", json!({ "token": token, "new_password": PASSWORD }), "400 page_error nobody");
        // This has ended her sessions.
        let mut carol = Client::browser("198.51.100.4");
        run.act("carol signs in anew", &mut carol, "POST /users/login", login("carol@example.com", PASSWORD), "200 account_login carol");
        world.carol = carol;
    }
    run.act("An e-mail to verify an address", &mut world.nobody, "POST /users/email/verify/send", json!({ "email": "dave@example.com" }), "200 account_edit nobody");
    run.act("… verified with a wrong token", &mut world.nobody, "POST /users/email/verify", json!({ "token": "z".repeat(64) }), "400 page_error nobody");
    run.act("… verified by the administrator", admin, &format!("POST /users/{dave_id}/email/verify/member"), (), "200 account_edit admin");
    run.act("Roles of an account", admin, &format!("PUT /users/{bob_id}/roles"), json!({ "roles": "system_user system_user_access_token" }), "200 account_edit admin");
    run.act("An account is switched off", admin, &format!("PUT /users/{dave_id}/active"), json!({ "active": false }), "200 account_edit admin");
    run.act("… its sign-in", &mut world.nobody, "POST /users/login", login("dave@example.com", "Correct-horse-4"), "401 account_login_fail unknown");
    run.act("… and on", admin, &format!("PUT /users/{dave_id}/active"), json!({ "active": true }), "200 account_edit admin");
    run.act("A member becomes a guest, without a license", admin, &format!("POST /users/{dave_id}/demote"), (), "501 page_error admin");
    run.act("Audit records of an account", alice, &format!("GET /users/{alice_id}/audits"), (), "200 page_view alice");
    run.act("Another's profile", bob, &format!("PUT /users/{carol_id}/patch"), json!({ "nickname": "x" }), "403 page_error bob");
}

fn tokens(run: &mut Run, world: &mut World) {
    let bob_id = run.id("bob");
    let channel = world.channel.clone();
    let bob = &mut world.bob;
    let made = run.act("A personal access token", bob, &format!("POST /users/{bob_id}/tokens"), json!({ "description": "script" }), "200 account_edit bob");
    let (id, token) = (made.id(), made.text("/token"));
    let mut script = Client::script("203.0.113.9", &format!("Bearer {token}"));
    run.act("A script only reads: nobody knows yet whose it is", &mut script, &format!("POST /teams/{}/posts/search", world.team), json!({ "terms": "plan", "is_or_search": false }), "200 page_search session");
    run.act("It posts (Authorization: Bearer)", &mut script, "POST /posts", json!({ "channel_id": channel, "message": "By a script" }), "201 page_edit bob");
    run.act("… searches again", &mut script, &format!("POST /teams/{}/posts/search", world.team), json!({ "terms": "plan", "is_or_search": false }), "200 page_search bob");
    let mut other = Client::script("203.0.113.9", &format!("token {token}"));
    run.act("… (Authorization: token)", &mut other, "POST /posts", json!({ "channel_id": channel, "message": "By a script" }), "201 page_edit bob");
    let mut none = Client::script("203.0.113.9", "");
    none.authorization = None;
    run.act("… (?access_token=), which is for OAuth alone", &mut none, &format!("POST /posts?access_token={token}"), json!({ "channel_id": channel, "message": "x" }), "401 page_error bob");
    run.act("The token is switched off", bob, "POST /users/tokens/disable", json!({ "token_id": id }), "200 account_edit bob");
    run.act("… used", &mut script, "POST /posts", json!({ "channel_id": channel, "message": "x" }), "401");
    run.act("… on", bob, "POST /users/tokens/enable", json!({ "token_id": id }), "200 account_edit bob");
    run.act("… and revoked", bob, "POST /users/tokens/revoke", json!({ "token_id": id }), "200 account_edit bob");
    run.act("… used", &mut script, "POST /posts", json!({ "channel_id": channel, "message": "x" }), "401");
    run.act("A token that never was", &mut Client::script("192.0.2.99", &format!("Bearer {NONE}")), "POST /posts", json!({ "channel_id": channel, "message": "x" }), "401");
}

fn bots_and_hooks(run: &mut Run, world: &mut World) {
    let (team, channel) = (world.team.clone(), world.channel.clone());
    let alice_id = run.id("alice");
    let (admin, bob) = (&mut world.admin, &mut world.bob);
    let bot = run.act("A bot is made", admin, "POST /bots", json!({ "username": "hal", "display_name": "Hal" }), "201 page_edit admin").text("/user_id");
    run.act("… changed", admin, &format!("PUT /bots/{bot}"), json!({ "username": "hal", "description": "Opens doors" }), "200 page_edit admin");
    let token = run.act("… gets a token", admin, &format!("POST /users/{bot}/tokens"), json!({ "description": "bot" }), "200 account_edit admin").text("/token");
    run.act("… joins the team", admin, &format!("POST /teams/{team}/members"), json!({ "team_id": team, "user_id": bot }), "201 page_edit admin");
    run.act("… joins the channel", admin, &format!("POST /channels/{channel}/members"), json!({ "user_id": bot }), "201 page_edit admin");
    let mut hal = Client::script("203.0.113.20", &format!("Bearer {token}"));
    run.act("The bot asks who it is", &mut hal, "GET /users/me", (), "200");
    run.act("The bot posts", &mut hal, "POST /posts", json!({ "channel_id": channel, "message": "I am sorry" }), "201 page_edit hal");
    run.act("The bot's picture", admin, &format!("POST /bots/{bot}/icon"), form(&[], "image", "dot.svg", b"<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"1\" height=\"1\"></svg>"), "200 page_edit admin");
    run.act("The bot is switched off", admin, &format!("POST /bots/{bot}/disable"), (), "200 page_edit admin");
    run.act("… and posts", &mut hal, "POST /posts", json!({ "channel_id": channel, "message": "x" }), "401");
    run.act("… on", admin, &format!("POST /bots/{bot}/enable"), (), "200 page_edit admin");
    run.act("… given to alice", admin, &format!("POST /bots/{bot}/assign/{alice_id}"), (), "200 page_edit admin");

    let hook = run.act("An incoming webhook", admin, "POST /hooks/incoming", json!({ "channel_id": channel, "display_name": "build" }), "201 page_edit admin").id();
    let mut ci = Client::script("203.0.113.30", "");
    ci.authorization = None;
    run.stage.secrets.insert(hook.clone());
    run.act("… gets a message", &mut ci, &format!("POST ~/hooks/{hook}"), json!({ "text": "The build is green" }), "200 page_edit nobody");
    run.act("… one that does not exist", &mut ci, &format!("POST ~/hooks/{NONE}"), json!({ "text": "x" }), "400 page_error nobody");
    run.act("… is changed", admin, &format!("PUT /hooks/incoming/{hook}"), json!({ "id": hook, "channel_id": channel, "display_name": "builds" }), "201 page_edit admin");
    run.act("… deleted", admin, &format!("DELETE /hooks/incoming/{hook}"), (), "200 page_delete admin");
    let hook = run.act("An outgoing webhook", admin, "POST /hooks/outgoing", json!({ "team_id": team, "channel_id": channel, "display_name": "out", "trigger_words": ["deploy"], "callback_urls": ["http://127.0.0.1:9/"] }), "201 page_edit admin").id();
    run.act("… gets a new token", admin, &format!("POST /hooks/outgoing/{hook}/regen_token"), (), "200 page_edit admin");
    run.act("… deleted", admin, &format!("DELETE /hooks/outgoing/{hook}"), (), "200 page_delete admin");
    let command = run.act("A command", admin, "POST /commands", json!({ "team_id": team, "trigger": "deploy", "url": "http://127.0.0.1:9/", "method": "P" }), "201 page_edit admin").id();
    run.act("A command is given", bob, "POST /commands/execute", json!({ "channel_id": channel, "command": "/shrug" }), "200 page_edit bob");
    run.act("The command gets a new token", admin, &format!("PUT /commands/{command}/regen_token"), (), "200 page_edit admin");
    run.act("… is deleted", admin, &format!("DELETE /commands/{command}"), (), "200 page_delete admin");
}

/// Mattermost authorizes another application.
fn oauth(run: &mut Run, world: &mut World) {
    let channel = world.channel.clone();
    let (admin, alice) = (&mut world.admin, &mut world.alice);
    let app = run.act("An OAuth application", admin, "POST /oauth/apps", json!({ "name": "Planner", "description": "Plans", "callback_urls": ["https://planner.example.com/"], "homepage": "https://planner.example.com/", "is_trusted": false }), "201 page_edit admin");
    let (id, secret) = (app.id(), app.text("/client_secret"));
    let granted = run.act("alice lets it in", alice, "POST ~/oauth/authorize", json!({ "response_type": "code", "client_id": id, "redirect_uri": "https://planner.example.com/", "state": "s", "scope": "user" }), "200 account_edit alice").text("/redirect");
    let code = granted
        .split(['?', '&'])
        .find_map(|pair| pair.strip_prefix("code="))
        .unwrap_or_default()
        .to_owned();
    let mut planner = Client::script("203.0.113.40", "");
    planner.authorization = None;
    let form = format!(
        "grant_type=authorization_code&client_id={id}&client_secret={secret}&code={code}&redirect_uri=https%3A%2F%2Fplanner.example.com%2F"
    );
    let token = run.act("… it fetches its token", &mut planner, "POST ~/oauth/access_token", Body::new("application/x-www-form-urlencoded", form.into_bytes()), "200 page_edit nobody").text("/access_token");
    run.act("… and posts (?access_token=)", &mut planner, &format!("POST /posts?access_token={token}"), json!({ "channel_id": channel, "message": "By Planner" }), "201 page_edit alice");
    run.act("… opens a channel (Bearer)", &mut Client::script("203.0.113.40", &format!("Bearer {token}")), "POST /channels/members/me/view", json!({ "channel_id": channel }), "200 page_view alice");
    run.act("alice shuts it out", alice, "POST ~/oauth/deauthorize", json!({ "client_id": id }), "200 account_edit alice");
    run.act("A new secret of the application", admin, &format!("POST /oauth/apps/{id}/regen_secret"), (), "200 page_edit admin");
    run.act("It is deleted", admin, &format!("DELETE /oauth/apps/{id}"), (), "200 page_delete admin");
}

/// Another server authenticates Mattermost's users.
fn sso(run: &mut Run, world: &mut World) {
    let provider = Backend::answering(gitlab);
    let at = format!("http://{}", provider.address());
    run.act("Settings: sign-in by GitLab", &mut world.admin, "PUT /config/patch", json!({ "GitLabSettings": { "Enable": true, "Id": "id", "Secret": "secret", "Scope": "", "AuthEndpoint": format!("{at}/authorize"), "TokenEndpoint": format!("{at}/token"), "UserApiEndpoint": format!("{at}/user") } }), "200 page_edit admin");
    let mut grace = Client::browser("198.51.100.7");
    grace.headers.push(("Accept", "text/html".into()));
    for (step, path) in [("Sign-up by GitLab", "signup"), ("Sign-in by GitLab", "login")] {
        grace.cookies.clear();
        let begun = run.act(&format!("{step}, first step"), &mut grace, &format!("GET ~/oauth/gitlab/{path}"), (), "302");
        let location = begun.header("Location").unwrap_or_default();
        let state = location
            .split(['?', '&'])
            .find_map(|pair| pair.strip_prefix("state="))
            .unwrap_or_default()
            .to_owned();
        let answer = run.quiet(&mut grace.clone(), "GET /users/me", ());
        assert_eq!(answer.status, 401, "nobody is signed in yet");
        run.act(&format!("{step}, second step"), &mut grace, &format!("GET ~/signup/gitlab/complete?code=c&state={state}"), (), "307 account_login grace");
        run.quiet(&mut grace, "GET /users/me", ());
    }
    run.act("Somebody comes back with a wrong state", &mut world.nobody, "GET ~/signup/gitlab/complete?code=c&state=wrong", (), "400");
}

/// A stand-in for GitLab.
fn gitlab(request: &BackendRequest) -> Answer {
    let body = match &*request.target {
        "/token" => json!({ "access_token": "t", "token_type": "bearer", "expires_in": 3600 }),
        _ => json!({ "id": 7, "username": "grace", "email": "grace@example.com", "name": "Grace" }),
    };
    let headers = vec![("Content-Type".into(), "application/json".into())];
    Answer { status: 200, headers, body: body.to_string().into_bytes() }
}

/// The administrator's actions.
fn server(run: &mut Run, world: &mut World) {
    let admin = &mut world.admin;
    let config = run.act("Settings are read", admin, "GET /config", (), "200 page_view admin").json;
    run.act("… changed in part", admin, "PUT /config/patch", json!({ "TeamSettings": { "MaxUsersPerTeam": 60 } }), "200 page_edit admin");
    run.act("… written", admin, "PUT /config", config, "200 page_edit admin");
    run.act("… read again from the file", admin, "POST /config/reload", (), "200 page_edit admin");
    run.act("Audit records", admin, "GET /audits", (), "200 page_view admin");
    run.act("Logs", admin, "GET /logs", (), "200 page_view admin");
    run.act("Caches are emptied", admin, "POST /caches/invalidate", (), "200 page_edit admin");
    let role = run.quiet(admin, "GET /roles/name/team_user", ()).id();
    run.act("Permissions of a role", admin, &format!("PUT /roles/{role}/patch"), json!({ "permissions": ["list_team_channels", "join_public_channels", "read_public_channel", "view_team", "create_public_channel", "create_private_channel", "invite_user", "add_user_to_team"] }), "200 page_edit admin");
    run.act("An emoji", admin, "POST /emoji", form(&[("emoji", &json!({ "name": "dot", "creator_id": run.id("admin") }).to_string())], "image", "dot.png", &dot()), "200 page_edit admin");
    run.act("A picture of the brand", admin, "POST /brand/image", form(&[], "image", "dot.png", &dot()), "201 page_edit admin");
    run.act("… removed", admin, "DELETE /brand/image", (), "200 page_delete admin");
    run.act("A certificate for SAML", admin, "POST /saml/certificate/idp", form(&[], "certificate", "idp.crt", b"x"), "200 page_edit admin");
    run.act("A license that is none", admin, "POST /license", form(&[], "license", "l.mattermost-license", b"x"), "400 page_error admin");
    run.act("A compliance report, without a license", admin, "POST /compliance/reports", json!({ "desc": "x", "keywords": "", "emails": "", "start_at": 1, "end_at": 2 }), "501 page_error admin");
    run.act("A support packet, without a license", admin, "GET /system/support_packet", (), "403 page_error admin");
    run.act("The database's connections", admin, "POST /database/recycle", (), "200 page_edit admin");
    run.act("The server is busy", admin, "POST /server_busy?seconds=1", (), "200 page_edit admin");
    run.act("… no longer", admin, "DELETE /server_busy", (), "200 page_delete admin");
    let job = run.act("An export begins", admin, "POST /jobs", json!({ "type": "export_process", "data": {} }), "201 page_edit admin").id();
    run.act("… is cancelled", admin, &format!("POST /jobs/{job}/cancel"), (), "200 page_edit admin");
    run.act("Exports are listed", admin, "GET /exports", (), "200 page_view admin");
    run.act("An export that does not exist", admin, "GET /exports/none.zip", (), "404");
    run.act("Plugins are read", admin, "GET /plugins", (), "200");
    run.act("A plugin that is none", admin, "POST /plugins", form(&[], "plugin", "p.tar.gz", b"x"), "400 page_error admin");
    run.act("A plugin is switched on that is not there", admin, "POST /plugins/com.example.none/enable", (), "404 page_error admin");
}

fn sockets(run: &mut Run, world: &mut World) {
    let upgraded = |client: &Client| {
        UPGRADE.iter().fold(
            client.with("Origin", "https://mattermost.example.com"),
            |client, (name, value)| client.with(name, value),
        )
    };
    run.act("A WebSocket opens", &mut upgraded(&world.alice), "GET /websocket", (), "101 page_view alice");
    run.act("… by a token in a header", &mut upgraded(&world.phone), "GET /websocket", (), "101 page_view alice");
    run.act("… that says later who it is", &mut upgraded(&world.nobody), "GET /websocket", (), "101 page_view nobody");
    run.act("… with alice's MMUSERID", &mut upgraded(&world.nobody).with_cookie("MMUSERID", &run.id("alice")), "GET /websocket", (), "101 page_view nobody");
}

/// A client that claims to be alice is not recorded as alice.
fn forgeries(run: &mut Run, world: &mut World) {
    let alice_id = run.id("alice");
    let channel = world.channel.clone();
    let post = json!({ "channel_id": channel, "message": "x" });
    let mut mallory = Client::browser("192.0.2.99").with_cookie("MMUSERID", &alice_id);
    run.act("alice's MMUSERID, no session: a post", &mut mallory.clone(), "POST /posts", post.clone(), "401");
    run.act("… a download", &mut mallory.clone(), &format!("GET /files/{}", world.file), (), "401");
    run.act("… her password", &mut mallory.clone(), &format!("PUT /users/{alice_id}/password"), json!({ "current_password": "x", "new_password": "y" }), "401");
    run.act("… signs out", &mut mallory.clone(), "POST /users/logout", (), "200");
    run.act("… a forgotten password", &mut mallory.clone(), "POST /users/password/reset/send", json!({ "email": "alice2@example.com" }), "500 page_error nobody");
    run.act("… a new account", &mut mallory.clone(), "POST /users", signup("mallory", PASSWORD), "201 account_registration mallory");
    run.act("… a wrong sign-in", &mut mallory.clone(), "POST /users/login", login("nosuchuser", "x"), "401 account_login_fail unknown");
    run.act("… a route that does not exist", &mut mallory, "PUT /posts/x/y/z", (), "404");
    run.act("bob's session with alice's MMUSERID: a post", &mut world.bob.with_cookie("MMUSERID", &alice_id), "POST /posts", post.clone(), "201 page_edit bob");
    let mut bob = world.bob.clone();
    bob.cookies.remove("MMUSERID");
    run.act("… without MMUSERID", &mut bob, "POST /posts", post.clone(), "201 page_edit bob");
    let token = world.phone.authorization.clone().unwrap_or_default();
    let mut both = world.bob.with("Authorization", &token);
    run.act("bob's cookie and alice's token: Mattermost takes the cookie", &mut both, "POST /posts", post.clone(), "201 page_edit bob");
    let mut other = world.bob.with_cookie("MMAUTHTOKEN", NONE);
    run.act("bob with a token that never was", &mut other, "POST /posts", post.clone(), "401");
    let mut forged = world.bob.clone();
    forged.headers.push(("X-MM-User-Id", alice_id));
    forged.headers.push(("X-Request-Id", "forged-forged-forged-forged-forged-forged".into()));
    run.act("bob with made-up headers", &mut forged, "POST /posts", post.clone(), "201 page_edit bob");
    let mut cross = world.bob.sent_by_another_site();
    run.act("bob's browser, sent by another site's page", &mut cross, "POST /posts", post, "401 page_error bob");
}

/// Actions that an ordinary user is not allowed.
fn refusals(run: &mut Run, world: &mut World) {
    let [alice_id, carol_id, admin_id] = ["alice", "carol", "admin"].map(|name| run.id(name));
    let carol = &mut world.carol;
    for (what, line, body) in [
        ("Settings are read", "GET /config".to_owned(), None),
        (
            "… changed",
            "PUT /config/patch".into(),
            Some(json!({ "TeamSettings": { "SiteName": "x" } })),
        ),
        (
            "Own roles",
            format!("PUT /users/{carol_id}/roles"),
            Some(json!({ "roles": "system_user system_admin" })),
        ),
        (
            "Another's password",
            format!("PUT /users/{alice_id}/password"),
            Some(json!({ "new_password": "Correct-horse-9" })),
        ),
        ("Another's sessions", format!("POST /users/{admin_id}/sessions/revoke/all"), None),
        (
            "Another's token",
            format!("POST /users/{alice_id}/tokens"),
            Some(json!({ "description": "x" })),
        ),
        (
            "Another's post, edited",
            format!("PUT /posts/{}/patch", world.post),
            Some(json!({ "message": "x" })),
        ),
        ("… deleted", format!("DELETE /posts/{}", world.post), None),
        ("The team, archived", format!("DELETE /teams/{}", world.team), None),
        ("An account, switched off", format!("DELETE /users/{alice_id}"), None),
        ("A bot", "POST /bots".into(), Some(json!({ "username": "evil" }))),
        ("A plugin", "POST /plugins".into(), Some(json!({}))),
        ("A job", "POST /jobs".into(), Some(json!({ "type": "export_process" }))),
        ("Exports", "GET /exports".into(), None),
        ("Logs", "GET /logs".into(), None),
        ("Audit records", "GET /audits".into(), None),
        ("A restart", "POST /restart".into(), None),
    ] {
        run.act(&format!("Refused: {what}"), carol, &line, body.map_or_else(Body::default, Body::from), "403 page_error carol");
    }
}

fn sessions(run: &mut Run, world: &mut World) {
    let [alice_id, bob_id] = ["alice", "bob"].map(|name| run.id(name));
    let channel = world.channel.clone();
    let post = json!({ "channel_id": channel, "message": "x" });
    let bob = &mut world.bob;
    run.act("The telephone's number for messages", &mut world.phone, "PUT /users/sessions/device", json!({ "device_id": "apple:1234" }), "200 account_edit alice");
    let list = run.quiet(bob, &format!("GET /users/{bob_id}/sessions"), ()).json;
    let mine = run.quiet(bob, "GET /users/me", ());
    assert_eq!(mine.status, 200);
    let other = list
        .as_array()
        .and_then(|list| list.iter().rev().find_map(|session| session["id"].as_str()));
    let other = other.unwrap_or_default().to_owned();
    run.act("A session is ended", bob, &format!("POST /users/{bob_id}/sessions/revoke"), json!({ "session_id": other }), "200 account_edit bob");
    let mut third = Client::browser("198.51.100.3");
    run.act("bob signs in elsewhere", &mut third, "POST /users/login", login("bob2@example.com", PASSWORD), "200 account_login bob");
    run.act("All own sessions are ended", &mut third, &format!("POST /users/{bob_id}/sessions/revoke/all"), (), "200 account_edit bob");
    run.act("… one is used", &mut third, "POST /posts", post.clone(), "401");
    run.act("… another, which has not noticed, signs out", bob, "POST /users/logout", (), "200 account_logout bob");
    run.act("The administrator ends alice's sessions", &mut world.admin, &format!("POST /users/{alice_id}/sessions/revoke/all"), (), "200 account_edit admin");
    run.act("… her telephone", &mut world.phone, "POST /posts", post, "401");
    let mut phone = Client::phone("203.0.113.2");
    run.act("She signs in with her new password", &mut phone, "POST /users/login", login("alice2@example.com", "Correct-horse-2"), "200 account_login alice");
    run.act("… and with the old one", &mut world.nobody, "POST /users/login", login("alice2@example.com", PASSWORD), "401 account_login_fail alice");
    run.act("The telephone signs out", &mut phone, "POST /users/logout", (), "200 account_logout alice");
    run.act("… again", &mut phone, "POST /users/logout", (), "200");
}

fn ends(run: &mut Run, world: &mut World) {
    let [dave_id, carol_id] = ["dave", "carol"].map(|name| run.id(name));
    let (admin, carol) = (&mut world.admin, &mut world.carol);
    run.act("A browser signs out", &mut carol.clone(), "POST /users/logout", (), "200 account_logout carol");
    run.act("… its old cookies", &mut carol.clone(), "POST /posts", json!({ "channel_id": world.channel, "message": "x" }), "401");
    run.act("An account becomes a bot", admin, &format!("POST /users/{dave_id}/convert_to_bot"), (), "200 account_edit admin");
    run.act("An account is switched off", admin, &format!("DELETE /users/{carol_id}"), (), "200 account_edit admin");
    run.act("All sessions are ended", admin, "POST /users/sessions/revoke/all", (), "200 account_edit admin");
    run.act("… the administrator's, too", admin, "GET /users/me", (), "401");
}
