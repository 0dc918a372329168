//! What people and programs do there, refused actions and forgeries among it, and what is expected to be recorded.
//!
//! Each line has the action, the client, the request, its body, and: the status, the event's type, its user. Without a
//! type there is to be no event.

use serde_json::json;
use tirreno_tests::application::{Body, PASSWORD};
use tirreno_tests::client::percent_encode;

use crate::run::{Client, HOST, Run, basic};

const SHARES: &str = "/ocs/v2.php/apps/files_sharing/api/v1/shares";
const APPS: &str = "/ocs/v2.php/apps/appstore/api/v1/apps";

/// Texts and contents, which nobody is to read but those who are meant.
const TEXT: &str = "Figures of the third quarter: all of them are good.\n";

const EVENT: &[u8] = b"BEGIN:VCALENDAR\r\nVERSION:2.0\r\nPRODID:-//x//EN\r\nBEGIN:VEVENT\r\nUID:e1\r\n\
DTSTAMP:20260101T100000Z\r\nDTSTART:20260101T100000Z\r\nSUMMARY:Budget talk in secret\r\nEND:VEVENT\r\nEND:VCALENDAR\r\n";

const CARD: &[u8] = b"BEGIN:VCARD\r\nVERSION:3.0\r\nUID:c1\r\nFN:Mr. Secretive\r\nEND:VCARD\r\n";

const BOOK: &[u8] = br#"<?xml version="1.0"?><d:mkcol xmlns:d="DAV:" xmlns:c="urn:ietf:params:xml:ns:carddav"><d:set>
<d:prop><d:resourcetype><d:collection/><c:addressbook/></d:resourcetype></d:prop></d:set></d:mkcol>"#;

/// Those who have a session in a browser.
struct World {
    admin: Client,
    alice: Client,
    bob: Client,
    carol: Client,
    /// Has no session.
    nobody: Client,
}

/// All of it.
pub(crate) fn all(run: &mut Run) {
    run.stage.secrets.extend(["third quarter", "Budget talk", "Mr. Secretive"].map(str::to_owned));
    let mut world = accounts(run);
    provisioning(run, &mut world);
    files(run, &mut world);
    chunks(run, &mut world);
    trash_and_versions(run, &mut world);
    shares(run, &mut world);
    calendars(run, &mut world);
    clients(run);
    app_passwords(run, &mut world);
    flow(run, &mut world);
    apps(run, &mut world);
    forgeries(run, &mut world);
    refusals(run, &mut world);
    noise(run, &mut world);
    ends(run, &mut world);
}

fn url(path: &str) -> String {
    format!("https://{HOST}{path}")
}

/// Accounts, and signing in.
fn accounts(run: &mut Run) -> World {
    let mut nobody = Client::browser("198.51.100.66");
    let [mut admin, mut alice, mut bob, mut carol] =
        [1, 2, 3, 4].map(|n| Client::browser(&format!("198.51.100.{n}")));
    run.login("Sign-in with a wrong password, before anybody signed in", &mut nobody, "/login", ("admin", "wrong"), "303 account_login_fail unknown");
    run.login("The administrator signs in", &mut admin, "/login", ("admin", PASSWORD), "303 account_login admin");
    run.login("… with a wrong password", &mut nobody, "/login", ("admin", "wrong"), "303 account_login_fail admin");
    for name in ["alice", "bob", "carol"] {
        run.act(&format!("An account for {name}"), &mut admin, "POST /ocs/v2.php/cloud/users", &[("userid", name), ("password", PASSWORD), ("email", &format!("{name}@example.com"))], "200 account_edit admin");
    }
    run.login("alice signs in", &mut alice, "/login", ("alice", PASSWORD), "303 account_login alice");
    run.login("bob signs in (/index.php/login)", &mut bob, "/index.php/login", ("bob", PASSWORD), "303 account_login bob");
    run.login("carol signs in with her e-mail address", &mut carol, "/login", ("carol@example.com", PASSWORD), "303 account_login carol");
    run.login("… with a wrong password", &mut nobody, "/login", ("carol@example.com", "wrong"), "303 account_login_fail carol");
    run.login("… with her name and a wrong password", &mut nobody, "/index.php/login", ("carol", "wrong"), "303 account_login_fail unknown");
    run.login("Sign-in of an account that does not exist", &mut nobody, "/login", ("mallory", "wrong"), "303 account_login_fail unknown");
    let mut short = Client::browser("198.51.100.2");
    short.remember = false;
    run.login("alice signs in and does not stay signed in", &mut short, "/login", ("alice", PASSWORD), "303 account_login alice");
    run.act("Sign-in without the form's token", &mut Client::browser("198.51.100.66"), "POST /login", &[("user", "alice"), ("password", PASSWORD)], "303 account_login_fail alice");
    let mut visited = Client::browser("198.51.100.3");
    run.quiet(&mut visited, "GET /login", ());
    let mut left = visited.with_cookie("nc_username", "alice");
    run.login("bob signs in where alice's cookie was left", &mut left, "/login", ("bob", PASSWORD), "303 account_login bob");
    let mut left = visited.with_cookie("nc_username", "alice");
    run.login("… with a wrong password", &mut left, "/login", ("bob", "wrong"), "303 account_login_fail bob");
    run.act("The login form", &mut nobody, "GET /login", (), "200");
    run.act("A page", &mut alice, "GET /apps/files/", (), "200");
    World { admin, alice, bob, carol, nobody }
}

/// The interface for administrators, in both versions and with `/index.php`.
fn provisioning(run: &mut Run, world: &mut World) {
    let admin = &mut world.admin;
    let users = "/ocs/v1.php/cloud/users";
    let failed = "200 page_error admin";
    run.act("An account (v1)", admin, &format!("POST {users}"), &[("userid", "dave"), ("password", PASSWORD)], "200 account_edit admin");
    run.act("… that there is already", admin, &format!("POST {users}"), &[("userid", "dave"), ("password", PASSWORD)], failed);
    run.act("… its answer compressed", &mut admin.with("Accept-Encoding", "gzip"), &format!("POST {users}"), &[("userid", "dave"), ("password", PASSWORD)], failed);
    run.act("… as XML", &mut admin.with("Accept", "application/xml"), &format!("POST {users}"), &[("userid", "dave"), ("password", PASSWORD)], failed);
    run.act("… (v2)", admin, "POST /ocs/v2.php/cloud/users", &[("userid", "dave"), ("password", PASSWORD)], "400 page_error admin");
    run.act("Accounts (v2)", admin, "POST /ocs/v2.php/cloud/users", &[("userid", "erin"), ("password", PASSWORD)], "200 account_edit admin");
    run.act("… (JSON)", admin, "POST /ocs/v2.php/cloud/users", json!({ "userid": "frank", "password": PASSWORD }), "200 account_edit admin");
    run.act("The interface below /index.php, where there is none", admin, "POST /index.php/ocs/v2.php/cloud/users", &[("userid", "gus"), ("password", PASSWORD)], "404 page_error admin");
    run.act("An account with a weak password", admin, "POST /ocs/v2.php/cloud/users", &[("userid", "grace"), ("password", "a")], "400 page_error admin");
    run.act("A group", admin, "POST /ocs/v2.php/cloud/groups", &[("groupid", "staff")], "200 account_edit admin");
    run.act("… that there is already (v1)", admin, "POST /ocs/v1.php/cloud/groups", &[("groupid", "staff")], failed);
    run.act("… its name", admin, "PUT /ocs/v2.php/cloud/groups/staff", &[("key", "displayname"), ("value", "All staff")], "200 account_edit admin");
    run.act("Into the group", admin, "POST /ocs/v2.php/cloud/users/alice/groups", &[("groupid", "staff")], "200 account_edit admin");
    run.act("… (v1)", admin, "POST /ocs/v1.php/cloud/users/bob/groups", &[("groupid", "staff")], "200 account_edit admin");
    run.act("… a group that does not exist (v1)", admin, "POST /ocs/v1.php/cloud/users/bob/groups", &[("groupid", "none")], failed);
    run.act("Out of the group", admin, "DELETE /ocs/v2.php/cloud/users/alice/groups?groupid=staff", (), "200 account_edit admin");
    run.act("Administrator of a group", admin, "POST /ocs/v2.php/cloud/users/bob/subadmins", &[("groupid", "staff")], "200 account_edit admin");
    run.act("… no longer", admin, "DELETE /ocs/v2.php/cloud/users/bob/subadmins?groupid=staff", (), "200 account_edit admin");
    run.act("A quota", admin, "PUT /ocs/v2.php/cloud/users/dave", &[("key", "quota"), ("value", "1 GB")], "200 account_edit admin");
    run.act("A name (JSON)", admin, "PUT /ocs/v2.php/cloud/users/dave", json!({ "key": "displayname", "value": "Dave D." }), "200 account_edit admin");
    run.act("An e-mail address", admin, "PUT /ocs/v2.php/cloud/users/dave", &[("key", "email"), ("value", "dave@example.com")], "200 account_email_change admin");
    run.act("… (JSON, v1)", admin, "PUT /ocs/v1.php/cloud/users/dave", json!({ "key": "email", "value": "dave2@example.com" }), "200 account_email_change admin");
    run.act("… that is none", admin, "PUT /ocs/v2.php/cloud/users/dave", &[("key", "email"), ("value", "none")], "400 page_error admin");
    run.act("A password", admin, "PUT /ocs/v2.php/cloud/users/dave", &[("key", "password"), ("value", "Correct-horse-4")], "200 account_password_change admin");
    run.act("… (v1)", admin, "PUT /ocs/v1.php/cloud/users/erin", &[("key", "password"), ("value", "Correct-horse-5")], "200 account_password_change admin");
    run.act("… too weak (v1)", admin, "PUT /ocs/v1.php/cloud/users/dave", &[("key", "password"), ("value", "a")], failed);
    run.stage.secrets.extend(["Correct-horse-4", "Correct-horse-5", "Correct-horse-2"].map(str::to_owned));
    run.act("An account is switched off", admin, "PUT /ocs/v2.php/cloud/users/dave/disable", (), "200 account_edit admin");
    run.login("… signs in", &mut world.nobody, "/login", ("dave", "Correct-horse-4"), "303 account_login_fail unknown");
    let admin = &mut world.admin;
    run.act("… and on", admin, "PUT /ocs/v2.php/cloud/users/dave/enable", (), "200 account_edit admin");
    run.act("An account is deleted", admin, "DELETE /ocs/v2.php/cloud/users/frank", (), "200 account_edit admin");
    run.act("… once more", admin, "DELETE /ocs/v2.php/cloud/users/frank", (), "404 page_error admin");
    run.act("… (v1)", admin, "DELETE /ocs/v1.php/cloud/users/frank", (), failed);
    run.act("A group is deleted", admin, "POST /ocs/v2.php/cloud/groups", &[("groupid", "old")], "200 account_edit admin");
    run.act("… (v1)", admin, "DELETE /ocs/v1.php/cloud/groups/old", (), "200 account_edit admin");
    run.act("Settings of an app", admin, "POST /ocs/v2.php/apps/provisioning_api/api/v1/config/apps/core/shareapi_default_expire_date", &[("value", "no")], "200 page_edit admin");
    run.act("Accounts are read", admin, "GET /ocs/v2.php/cloud/users", (), "200");
    let alice = &mut world.alice;
    run.act("Own telephone number", alice, "PUT /ocs/v2.php/cloud/users/alice", &[("key", "phone"), ("value", "+4930123456")], "200 account_edit alice");
    run.act("Own e-mail address", alice, "PUT /ocs/v2.php/cloud/users/alice", &[("key", "email"), ("value", "alice2@example.com")], "200 account_email_change alice");
    run.act("Own password", alice, "POST /settings/personal/changepassword", &[("oldpassword", PASSWORD), ("newpassword", "Correct-horse-2")], "200 account_password_change alice");
    run.act("… with a wrong one", alice, "POST /settings/personal/changepassword", &[("oldpassword", "wrong"), ("newpassword", "Correct-horse-3")], "200 page_error alice");
    run.act("… set back", alice, "POST /index.php/settings/personal/changepassword", &[("oldpassword", "Correct-horse-2"), ("newpassword", PASSWORD)], "200 account_password_change alice");
    run.act("Who am I", alice, "GET /ocs/v2.php/cloud/user", (), "200");
}

/// WebDAV, in its old place and its new.
fn files(run: &mut Run, world: &mut World) {
    let alice = &mut world.alice;
    let dav = "/remote.php/dav/files/alice";
    run.act("A file is written", alice, &format!("PUT {dav}/a.txt"), TEXT, "201 page_edit alice");
    run.act("… once more", alice, &format!("PUT {dav}/a.txt"), TEXT, "204 page_edit alice");
    run.act("… in the old place", alice, "PUT /remote.php/webdav/old.txt", TEXT, "201 page_edit alice");
    run.act("A folder", alice, &format!("MKCOL {dav}/plans"), (), "201 page_edit alice");
    run.act("… that there is already", alice, &format!("MKCOL {dav}/plans"), (), "405");
    run.act("… in the old place", alice, "MKCOL /remote.php/webdav/more", (), "201 page_edit alice");
    run.act("A file is copied", &mut alice.with("Destination", &url(&format!("{dav}/plans/b.txt"))), &format!("COPY {dav}/a.txt"), (), "201 page_edit alice");
    run.act("… moved", &mut alice.with("Destination", &url(&format!("{dav}/plans/c.txt"))), &format!("MOVE {dav}/plans/b.txt"), (), "201 page_edit alice");
    run.act("… in the old place", &mut alice.with("Destination", &url("/remote.php/webdav/more/old.txt")), "MOVE /remote.php/webdav/old.txt", (), "201 page_edit alice");
    run.act("A file is downloaded", alice, &format!("GET {dav}/a.txt"), (), "200 page_view alice");
    run.act("… a second time within the minute", alice, &format!("GET {dav}/a.txt"), (), "200");
    run.act("… in the old place", alice, "GET /remote.php/webdav/more/old.txt", (), "200 page_view alice");
    run.act("… that does not exist", alice, &format!("GET {dav}/none.txt"), (), "404");
    run.act("A folder as zip", &mut alice.with("Accept", "application/zip"), &format!("GET {dav}/plans"), (), "200 page_view alice");
    run.act("A folder is listed", &mut alice.with("Depth", "1"), &format!("PROPFIND {dav}/"), (), "207");
    run.act("A favourite", alice, &format!("PROPPATCH {dav}/a.txt"), Body::new("application/xml", br#"<?xml version="1.0"?><d:propertyupdate xmlns:d="DAV:" xmlns:oc="http://owncloud.org/ns"><d:set><d:prop><oc:favorite>1</oc:favorite></d:prop></d:set></d:propertyupdate>"#), "207");
    run.act("A file is deleted", alice, &format!("DELETE {dav}/plans/c.txt"), (), "204 page_delete alice");
    run.act("… in the old place", alice, "DELETE /remote.php/webdav/more/old.txt", (), "204 page_delete alice");
    run.act("… that does not exist", alice, &format!("DELETE {dav}/none.txt"), (), "404");
    let mut none = alice.clone();
    none.token = None;
    run.act("A page of another site writes: without the token", &mut none, &format!("PUT {dav}/a.txt"), TEXT, "401");
}

/// A large file comes in pieces.
fn chunks(run: &mut Run, world: &mut World) {
    let alice = &mut world.alice;
    let target = url("/remote.php/dav/files/alice/big.bin");
    let mut to = alice.with("Destination", &target);
    let uploads = "/remote.php/dav/uploads/alice/web-file-upload-1";
    run.act("A large file: begun", &mut to, &format!("MKCOL {uploads}"), (), "201");
    let piece = vec![b'x'; 6 << 20];
    for number in 1..=2 {
        run.act("… a piece", &mut to, &format!("PUT {uploads}/{number}"), Body::new("application/octet-stream", &*piece), "201");
    }
    run.act("… put together", &mut to.with("OC-Total-Length", &(12 << 20).to_string()), &format!("MOVE {uploads}/.file"), (), "201 page_edit alice");
    run.act("Another: begun", &mut to, "MKCOL /remote.php/dav/uploads/alice/web-file-upload-2", (), "201");
    run.act("… given up", &mut to, "DELETE /remote.php/dav/uploads/alice/web-file-upload-2", (), "204");
}

fn trash_and_versions(run: &mut Run, world: &mut World) {
    let alice = &mut world.alice;
    let trash = "/remote.php/dav/trashbin/alice";
    let mut restored = alice.with("Destination", &url(&format!("{trash}/restore/c.txt")));
    let listed = run.quiet(&mut alice.with("Depth", "1"), &format!("PROPFIND {trash}/trash"), ()).hrefs();
    let find = |name: &str| {
        let found = listed.iter().find(|href| href.contains(name));
        found.unwrap_or_else(|| panic!("no {name} in {listed:?}")).clone()
    };
    run.act("A file comes back from the trash", &mut restored, &format!("MOVE {}", find("/c.txt.d")), (), "201 page_edit alice");
    run.act("… one is deleted for ever", alice, &format!("DELETE {}", find("/old.txt.d")), (), "204 page_delete alice");
    run.act("The trash is emptied", alice, &format!("DELETE {trash}/trash"), (), "204 page_delete alice");

    let dav = "/remote.php/dav/files/alice/v.txt";
    let mut early = alice.with("X-OC-MTime", "1700000000");
    let made = run.act("A file of last year", &mut early, &format!("PUT {dav}"), TEXT, "201 page_edit alice");
    run.act("… written anew", alice, &format!("PUT {dav}"), "The figures were wrong.", "204 page_edit alice");
    let id = made.response.header("OC-FileId").unwrap_or_default();
    let id: String = id.chars().take_while(char::is_ascii_digit).collect();
    let id = id.trim_start_matches('0');
    let versions = format!("/remote.php/dav/versions/alice/versions/{id}");
    let listed = run.quiet(&mut alice.with("Depth", "1"), &format!("PROPFIND {versions}"), ()).hrefs();
    let old = listed.iter().find(|href| href.ends_with("/1700000000")).expect("the old version").clone();
    run.act("An old version is downloaded", alice, &format!("GET {old}"), (), "200 page_view alice");
    run.act("… comes back", &mut alice.with("Destination", &url("/remote.php/dav/versions/alice/restore/target")), &format!("MOVE {old}"), (), "201 page_edit alice");
    let listed = run.quiet(&mut alice.with("Depth", "1"), &format!("PROPFIND {versions}"), ()).hrefs();
    let new = listed.iter().rfind(|href| !href.ends_with(&format!("/{id}/"))).expect("a version").clone();
    run.act("A version is deleted", alice, &format!("DELETE {new}"), (), "204 page_delete alice");
}

fn shares(run: &mut Run, world: &mut World) {
    let (alice, nobody) = (&mut world.alice, &mut world.nobody);
    let shared = run.act("A file is shared with bob", alice, &format!("POST {SHARES}"), &[("path", "/a.txt"), ("shareType", "0"), ("shareWith", "bob")], "200 page_edit alice").text("/ocs/data/id");
    run.act("… with nobody that there is", alice, &format!("POST {SHARES}"), &[("path", "/a.txt"), ("shareType", "0"), ("shareWith", "none")], "404 page_error alice");
    run.act("… (v1)", alice, "POST /ocs/v1.php/apps/files_sharing/api/v1/shares", &[("path", "/a.txt"), ("shareType", "0"), ("shareWith", "none")], "200 page_error alice");
    run.act("… bob may change it", alice, &format!("PUT {SHARES}/{shared}"), &[("permissions", "3")], "200 page_edit alice");
    run.act("… (JSON)", alice, &format!("PUT {SHARES}/{shared}"), json!({ "permissions": 1 }), "200 page_edit alice");
    run.act("bob reads it", &mut world.bob, "GET /remote.php/dav/files/bob/a.txt", (), "200 page_view bob");
    run.act("… may not write it", &mut world.bob, "PUT /remote.php/dav/files/bob/a.txt", "x", "403 page_error bob");
    run.act("The share is withdrawn", alice, &format!("DELETE {SHARES}/{shared}"), (), "200 page_delete alice");
    run.act("Shares are listed", alice, &format!("GET {SHARES}"), (), "200");

    let link = run.act("A public link", alice, &format!("POST {SHARES}"), &[("path", "/plans"), ("shareType", "3"), ("permissions", "15")], "200 page_edit alice");
    let (open, token) = (link.text("/ocs/data/id"), link.text("/ocs/data/token"));
    run.stage.secrets.insert(token.clone());
    run.act("It is opened", nobody, &format!("GET /s/{token}"), (), "200 page_view nobody");
    run.act("… (/index.php)", nobody, &format!("GET /index.php/s/{token}"), (), "200 page_view nobody");
    run.act("… by bob", &mut world.bob, &format!("GET /s/{token}"), (), "200 page_view bob");
    let anonymous = basic(&token, "");
    run.act("… something is uploaded", &mut nobody.with("X-Requested-With", "XMLHttpRequest"), &format!("PUT /public.php/dav/files/{token}/up.txt"), TEXT, "201 page_edit nobody");
    run.act("… downloaded", &mut nobody.with("X-Requested-With", "XMLHttpRequest"), &format!("GET /public.php/dav/files/{token}/up.txt"), (), "200 page_view nobody");
    run.act("… in the old place", &mut Client::browser("198.51.100.66").with("Authorization", &anonymous).with("X-Requested-With", "XMLHttpRequest"), "GET /public.php/webdav/up.txt", (), "200 page_view nobody");
    run.act("… deleted", &mut nobody.with("X-Requested-With", "XMLHttpRequest"), &format!("DELETE /public.php/dav/files/{token}/up.txt"), (), "204 page_delete nobody");
    run.act("The link gets a password", alice, &format!("PUT {SHARES}/{open}"), &[("password", "Secret-of-link-1")], "200 page_edit alice");
    run.stage.secrets.insert("Secret-of-link-1".into());
    let mut guest = Client::browser("198.51.100.67");
    run.act("It is opened: the password is asked for", &mut guest, &format!("GET /s/{token}"), (), "303");
    run.quiet(&mut guest, &format!("GET /s/{token}/authenticate/showShare"), ());
    run.fetch_token(&mut guest);
    let ask = format!("POST /s/{token}/authenticate/showShare");
    run.act("… a wrong one", &mut guest, &ask, &[("password", "wrong"), ("sharingToken", &*token)], "200 account_login_fail nobody");
    run.act("… the right one", &mut guest, &ask, &[("password", "Secret-of-link-1"), ("sharingToken", &*token)], "303 page_view nobody");
    run.act("… it is opened", &mut guest, &format!("GET /s/{token}"), (), "200 page_view nobody");
    run.act("… with a wrong password by WebDAV", &mut Client::browser("198.51.100.68").with("Authorization", &basic("anonymous", "wrong")).with("X-Requested-With", "XMLHttpRequest"), &format!("GET /public.php/dav/files/{token}/a.txt"), (), "401 account_login_fail nobody");
    run.act("The link is withdrawn", alice, &format!("DELETE {SHARES}/{open}"), (), "200 page_delete alice");
    run.act("… and opened", nobody, &format!("GET /s/{token}"), (), "404");
}

fn calendars(run: &mut Run, world: &mut World) {
    let alice = &mut world.alice;
    let calendar = "/remote.php/dav/calendars/alice/work";
    run.act("A calendar", alice, &format!("MKCALENDAR {calendar}"), (), "201 page_edit alice");
    run.act("… an entry", alice, &format!("PUT {calendar}/e1.ics"), Body::new("text/calendar", EVENT), "201 page_edit alice");
    run.act("… exported", alice, &format!("GET {calendar}?export"), (), "200 page_view alice");
    run.act("… deleted", alice, &format!("DELETE {calendar}/e1.ics"), (), "204 page_delete alice");
    run.act("The calendar is deleted", alice, &format!("DELETE {calendar}"), (), "204 page_delete alice");
    let book = "/remote.php/dav/addressbooks/users/alice/work";
    run.act("An address book", alice, &format!("MKCOL {book}"), Body::new("application/xml", BOOK), "201 page_edit alice");
    run.act("… an entry", alice, &format!("PUT {book}/c1.vcf"), Body::new("text/vcard", CARD), "201 page_edit alice");
    run.act("… exported", alice, &format!("GET {book}?export"), (), "200 page_view alice");
    run.act("… deleted", alice, &format!("DELETE {book}/c1.vcf"), (), "204 page_delete alice");
    run.act("Another's address book", &mut world.bob, &format!("PUT {book}/c2.vcf"), Body::new("text/vcard", CARD), "404");
}

/// Programs with a name and a password.
fn clients(run: &mut Run) {
    let mut alice = Client::desktop("203.0.113.2", "alice", PASSWORD);
    run.act("A program writes (basic)", &mut alice.clone(), "PUT /remote.php/dav/files/alice/p.txt", TEXT, "201 page_edit alice");
    run.act("… in the old place", &mut alice.clone(), "PUT /remote.php/webdav/p.txt", TEXT, "204 page_edit alice");
    run.act("… reads", &mut alice, "GET /remote.php/dav/files/alice/p.txt", (), "200 page_view alice");
    run.act("… asks who it is, with the session that it got", &mut alice, "GET /ocs/v2.php/cloud/user", (), "200");
    run.act("… deletes", &mut alice, "DELETE /remote.php/dav/files/alice/p.txt", (), "204 page_delete alice");
    let mut mail = Client::desktop("203.0.113.4", "carol@example.com", PASSWORD);
    let user = if run.has_user_header() { "carol" } else { "carol@example.com" };
    run.act("… with an e-mail address", &mut mail, "PUT /remote.php/webdav/p.txt", TEXT, &format!("201 page_edit {user}"));
    let mut admin = Client::desktop("203.0.113.1", "admin", PASSWORD);
    run.act("A script makes an account", &mut admin.clone(), "POST /ocs/v1.php/cloud/users", &[("userid", "heidi"), ("password", PASSWORD)], "200 account_edit admin");
    run.act("… and deletes it", &mut admin, "DELETE /ocs/v2.php/cloud/users/heidi", (), "200 account_edit admin");
    let mut wrong = Client::desktop("192.0.2.99", "alice", "wrong");
    for (what, line) in [
        ("A wrong password: WebDAV", "PUT /remote.php/dav/files/alice/x.txt"),
        ("… in the old place", "PROPFIND /remote.php/webdav/"),
        ("… its root", "PROPFIND /remote.php/dav/"),
        ("… calendars", "PROPFIND /remote.php/dav/calendars/alice/"),
        ("… OCS v1", "GET /ocs/v1.php/cloud/user"),
        ("… OCS v2", "GET /ocs/v2.php/cloud/user"),
    ] {
        run.act(what, &mut wrong.clone(), line, (), "401 account_login_fail alice");
    }
    wrong = Client::desktop("192.0.2.99", "nosuchuser", "wrong");
    run.act("… of an account that does not exist", &mut wrong, "PROPFIND /remote.php/webdav/", (), "401 account_login_fail unknown");
}

fn app_passwords(run: &mut Run, world: &mut World) {
    let alice = &mut world.alice;
    // The page asks for the password once more and sends it beside the session.
    let mut confirmed = alice.with("Authorization", &basic("alice", PASSWORD));
    let made = run.act("An app password", &mut confirmed, "POST /settings/personal/authtokens", json!({ "name": "phone" }), "200 account_edit alice");
    let (password, id) = (made.text("/token"), made.text("/deviceToken/id"));
    run.stage.secrets.insert(password.clone());
    run.act("… is used", &mut Client::desktop("203.0.113.2", "alice", &password), "PUT /remote.php/dav/files/alice/q.txt", TEXT, "201 page_edit alice");
    run.act("… is renamed", &mut confirmed, &format!("PUT /settings/personal/authtokens/{id}"), json!({ "name": "tablet", "scope": { "filesystem": true } }), "200 account_edit alice");
    run.act("… is withdrawn", &mut confirmed, &format!("DELETE /settings/personal/authtokens/{id}"), (), "200 account_edit alice");
    run.act("… is used", &mut Client::desktop("203.0.113.2", "alice", &password), "PUT /remote.php/dav/files/alice/q.txt", TEXT, "401 account_login_fail alice");
    let made = run.act("A program changes its password for an app password", &mut Client::desktop("203.0.113.2", "alice", PASSWORD), "GET /ocs/v2.php/core/getapppassword", (), "200 account_edit alice");
    let password = made.text("/ocs/data/apppassword");
    run.stage.secrets.insert(password.clone());
    let mut program = Client::desktop("203.0.113.2", "alice", &password);
    run.act("… writes", &mut program.clone(), "PUT /remote.php/dav/files/alice/q.txt", TEXT, "204 page_edit alice");
    run.act("… withdraws it", &mut program, "DELETE /ocs/v2.php/core/apppassword", (), "200 account_edit alice");
}

/// A program signs in in the browser.
fn flow(run: &mut Run, world: &mut World) {
    let mut program = Client::browser("203.0.113.3");
    let begun = run.act("A program asks to sign in", &mut program, "POST /index.php/login/v2", (), "200");
    let (poll, login) = (begun.text("/poll/token"), begun.text("/login"));
    let token = login.rsplit('/').next().unwrap_or_default().to_owned();
    run.stage.secrets.extend([poll.clone(), token.clone()]);
    let bob = &mut world.bob;
    run.act("… the browser opens its page", bob, &format!("GET /login/v2/flow/{token}"), (), "303");
    let page = run.act("… bob is there", bob, "GET /login/v2/flow", (), "200");
    let state = run.state_token(&page);
    run.stage.secrets.insert(state.clone());
    run.act("… is asked", bob, &format!("GET /login/v2/grant?stateToken={state}"), (), "200");
    run.act("… agrees, with a wrong state", bob, "POST /login/v2/grant", &[("stateToken", "wrong")], "403");
    run.act("… agrees", bob, "POST /login/v2/grant", &[("stateToken", &*state)], "200 account_edit bob");
    let granted = run.act("The program fetches its password", &mut program, "POST /login/v2/poll", &[("token", &*poll)], "200");
    let password = granted.text("/appPassword");
    run.stage.secrets.insert(password.clone());
    run.act("… writes", &mut Client::desktop("203.0.113.3", "bob", &password), "PUT /remote.php/dav/files/bob/f.txt", TEXT, "201 page_edit bob");
    run.act("… polls again", &mut program, "POST /login/v2/poll", &[("token", &*poll)], "404");
}

fn apps(run: &mut Run, world: &mut World) {
    let admin = &mut world.admin;
    let mut confirmed = admin.with("Authorization", &basic("admin", PASSWORD));
    run.act("An app is switched off (OCS)", &mut confirmed, "DELETE /ocs/v2.php/cloud/apps/weather_status", (), "200 page_edit admin");
    run.act("… and on", &mut confirmed, "POST /ocs/v2.php/cloud/apps/weather_status", (), "200 page_edit admin");
    if run.major() >= 34 {
        run.act("An app is switched off (page of apps)", &mut confirmed, &format!("POST {APPS}/disable"), json!({ "appId": "weather_status" }), "200 page_edit admin");
        run.act("… and on", &mut confirmed, &format!("POST {APPS}/enable"), json!({ "appId": "weather_status", "groups": [] }), "200 page_edit admin");
        run.act("… by bob", &mut world.bob, &format!("POST {APPS}/disable"), json!({ "appId": "weather_status" }), "403 page_error bob");
    } else {
        run.act("An app is switched off (page of apps)", &mut confirmed, "POST /settings/apps/disable", json!({ "appIds": ["weather_status"] }), "200 page_edit admin");
        run.act("… and on", &mut confirmed, "POST /settings/apps/enable", json!({ "appIds": ["weather_status"], "groups": [] }), "200 page_edit admin");
        run.act("… by bob", &mut world.bob, "POST /settings/apps/disable", json!({ "appIds": ["weather_status"] }), "403 page_error bob");
    }
    let admin = &mut world.admin;
    run.act("Second factors for all", &mut confirmed, "PUT /settings/api/admin/twofactorauth", json!({ "enforced": false, "enforcedGroups": [], "excludedGroups": [] }), "200 account_edit admin");
    run.act("An OAuth client", &mut confirmed, "POST /apps/oauth2/clients", &[("name", "planner"), ("redirectUri", "https://planner.example.com/")], "200 page_edit admin");
    run.act("The mail server", admin, "POST /settings/admin/mailsettings", json!({ "mail_domain": "example.com", "mail_from_address": "cloud", "mail_smtpmode": "smtp", "mail_smtpsecure": "", "mail_smtphost": "127.0.0.1", "mail_smtpauth": false, "mail_smtpport": "9", "mail_sendmailmode": "smtp" }), "200 page_edit admin");
    run.act("Backup codes", &mut world.carol, "POST /apps/twofactor_backupcodes/settings/create", (), "200 account_edit carol");
}

/// Who says to be alice is not alice.
fn forgeries(run: &mut Run, world: &mut World) {
    let mallory = Client::browser("192.0.2.99").with_cookie("nc_username", "alice");
    let file = "PUT /remote.php/dav/files/bob/m.txt";
    run.act("alice's nc_username, no session: writes", &mut mallory.clone(), "PUT /remote.php/dav/files/alice/m.txt", "x", "401");
    run.act("… makes an account", &mut mallory.clone(), "POST /ocs/v2.php/cloud/users", &[("userid", "x"), ("password", PASSWORD)], "401");
    run.act("… signs out", &mut mallory.clone(), "GET /logout", (), "401");
    run.act("… another's session, made up", &mut mallory.with_cookie("oc_sessionPassphrase", "made-up-made-up").with_cookie("nc_token", "x").with_cookie("nc_session_id", "x"), "PUT /remote.php/dav/files/alice/m.txt", "x", "412");
    run.act("bob's session with alice's nc_username", &mut world.bob.with_cookie("nc_username", "alice"), file, "x", "201 page_edit bob");
    run.act("… without nc_username", &mut world.bob.without_cookie("nc_username"), file, "x", "204 page_edit bob");
    let mut both = Client::desktop("203.0.113.3", "bob", PASSWORD).with_cookie("nc_username", "alice");
    run.act("bob's password (basic) with alice's nc_username", &mut both, file, "x", "204 page_edit bob");
    run.act("bob with a made-up X-User-Id", &mut world.bob.with("X-User-Id", "alice"), file, "x", "204 page_edit bob");
    run.act("bob with another's bearer token", &mut world.bob.with("Authorization", "Bearer made-up-made-up-made-up"), file, "x", "204 page_edit bob");
    run.act("bob's session and alice's name with a wrong password (basic), at the interface for accounts", &mut world.bob.with("Authorization", &basic("alice", "wrong")), "PUT /ocs/v2.php/cloud/users/bob", &[("key", "phone"), ("value", "+4930123457")], "200 account_edit bob");
    run.act("… by WebDAV", &mut world.bob.with("Authorization", &basic("alice", "wrong")), file, "x", "204 page_edit bob");
    run.login("bob signs in once more", &mut world.bob, "/login", ("bob", PASSWORD), "303 account_login bob");
    let mut spare = Client::browser("198.51.100.3");
    run.login("… in another browser", &mut spare, "/login", ("bob", PASSWORD), "303 account_login bob");
    run.act("… his session without the passphrase's cookie", &mut spare.without_cookie("oc_sessionPassphrase").without_cookie("nc_token"), file, "x", "401");
    let mut form = Client::browser("192.0.2.99");
    run.quiet(&mut form, "GET /login", ());
    let mut form = form.with_cookie("nc_username", "alice");
    run.login("alice's nc_username: a wrong sign-in of nobody", &mut form, "/login", ("nosuchuser", "x"), "303 account_login_fail unknown");
}

/// What an ordinary user may not do.
fn refusals(run: &mut Run, world: &mut World) {
    let carol = &mut world.carol;
    let own = [("key", "quota"), ("value", "9 GB")];
    let password = [("key", "password"), ("value", "Correct-horse-9")];
    run.act("Refused: an account", carol, "POST /ocs/v2.php/cloud/users", &[("userid", "x"), ("password", PASSWORD)], "403 page_error carol");
    run.act("Refused: … (v1)", carol, "POST /ocs/v1.php/cloud/users", &[("userid", "x"), ("password", PASSWORD)], "200 page_error carol");
    run.act("Refused: a group", carol, "POST /ocs/v2.php/cloud/groups", &[("groupid", "x")], "403 page_error carol");
    run.act("Refused: into the administrators", carol, "POST /ocs/v2.php/cloud/users/carol/groups", &[("groupid", "admin")], "403 page_error carol");
    run.act("Refused: another's password", carol, "PUT /ocs/v2.php/cloud/users/alice", &password, "404 page_error carol");
    run.act("Refused: own quota (v1)", carol, "PUT /ocs/v1.php/cloud/users/carol", &own, "200 page_error carol");
    run.act("Refused: an account, switched off", carol, "PUT /ocs/v2.php/cloud/users/alice/disable", (), "403 page_error carol");
    run.act("Refused: an account, deleted", carol, "DELETE /ocs/v2.php/cloud/users/alice", (), "403 page_error carol");
    run.act("Refused: an app", carol, "DELETE /ocs/v2.php/cloud/apps/activity", (), "403 page_error carol");
    run.act("Refused: settings of an app", carol, "POST /ocs/v2.php/apps/provisioning_api/api/v1/config/apps/core/x", &[("value", "1")], "403 page_error carol");
    run.act("Refused: another's file, written", carol, "PUT /remote.php/dav/files/alice/x.txt", "x", "403 page_error carol");
    run.act("Refused: … read", carol, "GET /remote.php/dav/files/alice/a.txt", (), "404");
    run.act("Refused: … deleted", carol, "DELETE /remote.php/dav/files/alice/a.txt", (), "404");
    run.act("Refused: another's share, changed", carol, &format!("PUT {SHARES}/1"), &[("permissions", "1")], "404 page_error carol");
    run.act("Refused: second factors for all", carol, "PUT /settings/api/admin/twofactorauth", json!({ "enforced": false }), "403 page_error carol");
    run.act("Refused: the mail server", carol, "POST /settings/admin/mailsettings", json!({}), "403 page_error carol");
}

/// What pages and programs ask for meanwhile.
fn noise(run: &mut Run, world: &mut World) {
    let alice = &mut world.alice;
    for (line, status) in [
        ("GET /ocs/v2.php/apps/notifications/api/v2/notifications", "200"),
        ("GET /ocs/v2.php/cloud/capabilities", "200"),
        ("GET /status.php", "200"),
        ("GET /csrftoken", "200"),
        ("GET /avatar/alice/64", "200"),
        ("GET /apps/dashboard/", "200"),
        ("GET /settings/user", "200"),
        ("GET /core/img/favicon.ico", "200"),
        ("GET /.well-known/caldav", "301"),
        ("GET /data/nextcloud.log", "404"),
        ("PUT /ocs/v2.php/apps/user_status/api/v1/heartbeat", "200"),
    ] {
        let body = if line.contains("heartbeat") { json!({ "status": "online" }).into() } else { Body::default() };
        run.act("Noise", alice, line, body, status);
    }
}

fn ends(run: &mut Run, world: &mut World) {
    let token = world.bob.token.clone().unwrap_or_default();
    let bob = &mut world.bob;
    let before = bob.clone();
    run.act("bob signs out", bob, &format!("GET /logout?requesttoken={}", percent_encode(&token)), (), "303 account_logout bob");
    run.act("… his old cookies write", &mut before.clone(), "PUT /remote.php/dav/files/bob/z.txt", "x", "401");
    run.act("The administrator wipes alice's devices", &mut world.admin, "POST /ocs/v2.php/cloud/users/alice/wipe", (), "200 account_edit admin");
    run.act("Forgotten password", &mut Client::browser("198.51.100.66"), "POST /lostpassword/email", &[("user", "alice")], "412");
    let mut nobody = Client::browser("198.51.100.66");
    run.quiet(&mut nobody, "GET /login", ());
    run.fetch_token(&mut nobody);
    run.act("… from the form", &mut nobody, "POST /lostpassword/email", &[("user", "alice")], "200 account_edit alice");
    run.act("… of a name that nobody has signed in with", &mut nobody, "POST /lostpassword/email", &[("user", "carol")], "200 account_edit unknown");
    run.act("An account is deleted", &mut world.admin, "DELETE /ocs/v2.php/cloud/users/carol", (), "200 account_edit admin");
    run.act("… and writes", &mut world.carol, "PUT /remote.php/dav/files/carol/z.txt", "x", "401");
}
