//! A real WordPress: actions of its users, and their events.
//!
//! `ci/test --full` unpacks Debian's packages (WordPress, PHP-FPM, MariaDB) into the directory
//! `TEST_WORDPRESS`. Without it, the test is skipped.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::{env, io};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use tempfile::TempDir;
use tirreno_tests::application::{cookie_header, take_cookies};
use tirreno_tests::cases::{self, CASE, is_alias};
use tirreno_tests::client::{Connection, Response, form};
use tirreno_tests::nginx::Nginx;
use tirreno_tests::sensor::{Sensor, SensorOptions};
use tirreno_tests::wait::{SOON, wait_for, wait_until};

/// WordPress's host name, whatever its port.
const HOST: &str = "blog.example.com";

const PASSWORD: &str = "5ecret-correct-horse";

const FORM: (&str, &str) = ("Content-Type", "application/x-www-form-urlencoded");
const JSON: (&str, &str) = ("Content-Type", "application/json");

/// The extensions of PHP that WordPress needs, in an order in which they can be loaded.
const EXTENSIONS: [&str; 11] = [
    "ctype",
    "tokenizer",
    "iconv",
    "dom",
    "xml",
    "fileinfo",
    "exif",
    "gd",
    "mysqlnd",
    "mysqli",
    "opcache",
];

const PLUGIN: &str = "<?php\n/* Plugin Name: Nothing */\n";

/// Programs that end with the test.
struct Programs(Vec<Child>);

impl Drop for Programs {
    fn drop(&mut self) {
        for program in &mut self.0 {
            let _ = program.kill();
            let _ = program.wait();
        }
    }
}

/// WordPress with its database, without a web server.
struct WordPress {
    unpacked: PathBuf,
    dir: TempDir,
    _programs: Programs,
}

impl WordPress {
    /// From the packages that are unpacked in a directory.
    fn start(unpacked: &Path) -> Self {
        let dir = tempfile::Builder::new().prefix("wordpress-").tempdir().expect("a directory");
        let path = |name: &str| dir.path().join(name);
        for name in ["db", "tmp", "www/wp-content/plugins", "www/wp-content/uploads"] {
            fs::create_dir_all(path(name)).expect("a directory");
        }
        let source = unpacked.join("usr/share/wordpress");
        copy(&source, &path("www"));
        copy(
            &unpacked.join("usr/share/wordpress/wp-content/themes"),
            &path("www/wp-content/themes"),
        );
        fs::write(path("www/wp-content/plugins/nothing.php"), PLUGIN).expect("a plugin");
        let socket = path("my.sock");
        fs::write(
            path("www/wp-config.php"),
            format!(
                "<?php
                 define('DB_NAME', 'wp'); define('DB_USER', 'root'); define('DB_PASSWORD', '');
                 define('DB_HOST', 'localhost:{}'); define('DB_CHARSET', 'utf8mb4');
                 foreach (['AUTH_KEY', 'SECURE_AUTH_KEY', 'LOGGED_IN_KEY', 'NONCE_KEY', 'AUTH_SALT',
                     'SECURE_AUTH_SALT', 'LOGGED_IN_SALT', 'NONCE_SALT'] as $key) define($key, $key);
                 $table_prefix = 'wp_';
                 define('WP_HOME', 'http://{HOST}'); define('WP_SITEURL', 'http://{HOST}');
                 define('DISABLE_WP_CRON', true); define('WP_HTTP_BLOCK_EXTERNAL', true);
                 define('AUTOMATIC_UPDATER_DISABLED', true); define('FS_METHOD', 'direct');
                 define('WP_ENVIRONMENT_TYPE', 'local'); define('WP_DEBUG', false);
                 defined('ABSPATH') || define('ABSPATH', __DIR__ . '/');
                 require_once ABSPATH . 'wp-settings.php';",
                socket.display()
            ),
        )
        .expect("a file");
        fs::write(
            path("my.cnf"),
            format!(
                "[mysqld]\ndatadir={0}/db\nsocket={0}/my.sock\npid-file={0}/my.pid\n\
                 log-error={0}/my.err\ntmpdir={0}/tmp\nskip-networking\nskip-grant-tables\n\
                 lc_messages_dir={1}/usr/share/mysql\nplugin-dir={1}/usr/lib/mysql/plugin\n\
                 innodb_buffer_pool_size=16M\ninnodb_log_file_size=8M\nperformance_schema=off\n\
                 innodb_flush_method=nosync\ninnodb_flush_log_at_trx_commit=0\n",
                dir.path().display(),
                unpacked.display()
            ),
        )
        .expect("a file");
        let log = |name: &str| Stdio::from(fs::File::create(path(name)).expect("a log"));
        let mut database = Command::new(unpacked.join("usr/sbin/mariadbd"));
        database.arg(format!("--defaults-file={}", path("my.cnf").display()));
        if rustix::process::geteuid().is_root() {
            database.arg("--user=root");
        }
        let database = database
            .stdin(Stdio::null())
            .stdout(log("my.out"))
            .stderr(log("my.out2"))
            .spawn()
            .expect("MariaDB runs");
        let mut programs = Programs(vec![database]);
        let wordpress = |programs| Self { unpacked: unpacked.into(), dir, _programs: programs };
        programs.0.push(Self::php(unpacked, &socket.with_file_name("")));
        let started = wordpress(programs);
        wait_for(SOON, "MariaDB", || started.query("information_schema", "CREATE DATABASE wp"));
        wait_until(SOON, "PHP", || started.dir.path().join("fpm.sock").exists());
        started
    }

    fn php(unpacked: &Path, dir: &Path) -> Child {
        let find = |start: &Path, name: &str| {
            let entries = fs::read_dir(start).ok()?;
            let mut found: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
            found.retain(|path| path.to_string_lossy().contains(name));
            found.sort();
            found.pop()
        };
        let fpm = find(&unpacked.join("usr/sbin"), "php-fpm");
        let fpm = fpm.or_else(|| find(Path::new("/usr/sbin"), "php-fpm")).expect("PHP-FPM");
        let directories = [unpacked.join("usr/lib/php"), "/usr/lib/php".into()];
        let of = |name: &str| {
            directories.iter().find_map(|start| {
                let found = find(start, "20")?.join(format!("{name}.so"));
                found.exists().then_some(found)
            })
        };
        let mut ini = String::from("sendmail_path = /bin/true\ndisplay_errors = 0\n");
        for name in EXTENSIONS {
            let kind = if name == "opcache" { "zend_extension" } else { "extension" };
            if let Some(file) = of(name) {
                ini += &format!("{kind} = {}\n", file.display());
            }
        }
        fs::write(dir.join("php.ini"), ini).expect("a file");
        let dir_name = dir.display();
        fs::write(
            dir.join("fpm.conf"),
            format!(
                "[global]\nerror_log = {dir_name}/fpm.log\ndaemonize = no\n[www]\n\
                 listen = {dir_name}/fpm.sock\npm = static\npm.max_children = 3\n{}",
                match rustix::process::geteuid().is_root() {
                    true => "user = root\ngroup = root\n",
                    false => "",
                }
            ),
        )
        .expect("a file");
        Command::new(fpm)
            .args(["-R", "-c"])
            .arg(dir.join("php.ini"))
            .arg("-y")
            .arg(dir.join("fpm.conf"))
            .env("PHP_INI_SCAN_DIR", "")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("PHP-FPM runs")
    }

    /// Runs a statement of SQL.
    fn query(&self, database: &str, statement: &str) -> Result<String, String> {
        let socket = self.dir.path().join("my.sock");
        let output = Command::new(self.unpacked.join("usr/bin/mariadb"))
            .arg("--no-defaults")
            .arg("-S")
            .arg(socket)
            .args(["-N", "-e", statement, database])
            .output()
            .map_err(|error| error.to_string())?;
        match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    fn sql(&self, statement: &str) -> String {
        self.query("wp", statement).unwrap_or_else(|error| panic!("{statement}: {error}"))
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }
}

/// Copies a directory. Links to missing files outside of it are left out.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory");
    for entry in fs::read_dir(from).expect("a directory") {
        let from = entry.expect("an entry").path();
        let to = to.join(from.file_name().expect("a name"));
        match fs::metadata(&from) {
            Ok(kind) if kind.is_dir() => copy(&from, &to),
            Ok(_) => {
                if fs::copy(&from, &to).is_err() {
                    let _ = symlink(&from, &to);
                }
            }
            Err(_) => {}
        }
    }
}

/// A browser: it keeps cookies, and sends the hidden fields of forms.
struct Browser<'b> {
    site: &'b Site,
    cookies: BTreeMap<String, String>,
}

/// nginx before WordPress, and the sensor behind nginx.
struct Site {
    wordpress: WordPress,
    sensor: Sensor,
    nginx: Nginx,
}

impl Site {
    fn start(unpacked: &Path) -> Self {
        let wordpress = WordPress::start(unpacked);
        let sensor = Sensor::start(SensorOptions::default());
        let preset =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../nginx-conf/presets/wordpress.conf");
        let nginx = Nginx::builder()
            .sensor(&sensor.url())
            .var("ROOT", &wordpress.path("www"))
            .var("FPM", &wordpress.path("fpm.sock"))
            .http(&format!(
                "tirreno_target {{
                     url %SENSOR%; api_key test-key; interval 20ms; login_fail_delay 0; repeat off;
                 }}
                 tirreno_state %PREFIX%/state;
                 keepalive_requests 100000;
                 client_max_body_size 8m;
                 {}",
                cases::LOG
            ))
            .server(&format!(
                "root %ROOT%; index index.php; {}
                 tirreno on;
                 location / {{ try_files $uri $uri/ /index.php?$args; }}
                 location ~ \\.php(/|$) {{
                     fastcgi_split_path_info ^(.+\\.php)(/.*)$;
                     fastcgi_param SCRIPT_FILENAME $document_root$fastcgi_script_name;
                     fastcgi_param PATH_INFO       $fastcgi_path_info;
                     fastcgi_param SCRIPT_NAME     $fastcgi_script_name;
                     fastcgi_param REQUEST_URI     $request_uri;
                     fastcgi_param DOCUMENT_ROOT   $document_root;
                     fastcgi_param QUERY_STRING    $query_string;
                     fastcgi_param REQUEST_METHOD  $request_method;
                     fastcgi_param CONTENT_TYPE    $content_type;
                     fastcgi_param CONTENT_LENGTH  $content_length;
                     fastcgi_param SERVER_PROTOCOL $server_protocol;
                     fastcgi_param REMOTE_ADDR     $remote_addr;
                     fastcgi_param SERVER_NAME     {HOST};
                     fastcgi_param SERVER_PORT     80;
                     fastcgi_param HTTP_ACCEPT_ENCODING \"\";
                     fastcgi_buffer_size 64k;
                     fastcgi_buffers 16 64k;
                     fastcgi_read_timeout 120s;
                     fastcgi_pass unix:%FPM%;
                 }}",
                fs::read_to_string(preset).expect("the preset")
            ))
            .start();
        Self { wordpress, sensor, nginx }
    }

    fn browser(&self) -> Browser<'_> {
        Browser { site: self, cookies: BTreeMap::new() }
    }
}

impl Browser<'_> {
    /// Makes a request; `case` is its name if it is an action.
    #[track_caller]
    fn request(
        &mut self,
        case: &str,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Response {
        let cookies = cookie_header(&self.cookies);
        let mut all = vec![("Host", HOST), (CASE, case)];
        if !cookies.is_empty() {
            all.push(("Cookie", &cookies));
        }
        all.extend_from_slice(headers);
        let address = SocketAddr::from(([127, 0, 0, 1], self.site.nginx.port()));
        let made = || -> io::Result<Response> {
            Connection::open(address)?.request(method, target, &all, body)
        };
        let response = made().unwrap_or_else(|error| panic!("{method} {target}: {error}"));
        take_cookies(&mut self.cookies, &response);
        response
    }

    #[track_caller]
    fn get(&mut self, case: &str, target: &str) -> Response {
        self.request(case, "GET", target, &[], b"")
    }

    #[track_caller]
    fn post(&mut self, case: &str, target: &str, fields: &[(&str, &str)]) -> Response {
        self.request(case, "POST", target, &[FORM], &form(fields))
    }

    /// The value of a hidden field on a page.
    #[track_caller]
    fn hidden(&mut self, page: &str, name: &str) -> String {
        let text = self.get("-", page).text();
        let start = format!("name=\"{name}\" value=\"");
        let found = text.split_once(&start).and_then(|(_, rest)| rest.split('"').next());
        found.unwrap_or_else(|| panic!("no {name} on {page}: {text:.2000}")).to_owned()
    }

    /// The first link on a page with this beginning, as written in the attribute.
    #[track_caller]
    fn link(&mut self, page: &str, has: &str) -> String {
        let text = self.get("-", page).text().replace("&#038;", "&").replace("&amp;", "&");
        let mut links =
            text.split(['"', '\'']).filter(|part| part.contains(has) && part.contains("_wpnonce"));
        let link = links.next_back().unwrap_or_else(|| panic!("no {has} on {page}")).to_owned();
        let path = link.split_once(HOST).map_or(link.clone(), |(_, path)| path.to_owned());
        if path.starts_with('/') { path } else { format!("/wp-admin/{path}") }
    }

    fn rest_nonce(&mut self) -> String {
        self.get("-", "/wp-admin/admin-ajax.php?action=rest-nonce").text()
    }

    #[track_caller]
    fn rest(
        &mut self,
        case: &str,
        method: &str,
        target: &str,
        more: &[(&str, &str)],
        json: &str,
    ) -> Response {
        let nonce = self.rest_nonce();
        let mut headers = vec![("X-WP-Nonce", &*nonce), JSON];
        headers.extend_from_slice(more);
        self.request(case, method, target, &headers, json.as_bytes())
    }

    #[track_caller]
    fn sign_in(&mut self, case: &str, name: &str, password: &str) -> Response {
        self.get("-", "/wp-login.php");
        let fields = [("log", name), ("pwd", password), ("testcookie", "1")];
        self.post(case, "/wp-login.php", &fields)
    }
}

#[test]
fn what_people_do_there() {
    let Some(unpacked) = env::var_os("TEST_WORDPRESS") else { return };
    let site = Site::start(Path::new(&unpacked));
    let mut nobody = site.browser();
    let installed = nobody.post(
        "-",
        "/wp-admin/install.php?step=2",
        &[
            ("weblog_title", "Blog"),
            ("user_name", "admin"),
            ("admin_password", PASSWORD),
            ("admin_password2", PASSWORD),
            ("pw_weak", "1"),
            ("admin_email", "admin@example.com"),
            ("blog_public", "0"),
        ],
    );
    assert!(installed.text().contains("wp-login.php"), "{}", installed.text());
    for (name, value) in [
        ("permalink_structure", "/%postname%/"),
        ("users_can_register", "1"),
        ("rewrite_rules", ""),
    ] {
        site.wordpress.sql(&format!(
            "UPDATE wp_options SET option_value = '{value}' WHERE option_name = '{name}'"
        ));
    }

    // The name of each action, and its expected event.
    let mut expected: Vec<(&str, &str, &str)> = Vec::new();
    let mut expect = |case: &'static str, kind: &'static str, user: &'static str| -> &'static str {
        expected.push((case, kind, user));
        case
    };

    // Signing in.
    nobody.sign_in(expect("wrong-unknown", "account_login_fail", "unknown"), "nobody", "5ecret");
    let mut admin = site.browser();
    admin.sign_in(expect("login", "account_login", "admin"), "admin", PASSWORD);
    nobody.sign_in(expect("wrong", "account_login_fail", "admin"), "admin", "5ecret");
    let wrong = [("log", "admin"), ("pwd", "5ecret")];
    nobody.post(
        expect("wrong-action", "account_login_fail", "admin"),
        "/wp-login.php?action=foo",
        &wrong,
    );
    nobody.post(
        expect("wrong-body-action", "account_login_fail", "admin"),
        "/wp-login.php?action=lostpassword",
        &[("action", "login"), wrong[0], wrong[1]],
    );
    nobody.post(expect("wrong-path", "account_login_fail", "admin"), "/wp-login.php/x.php", &wrong);
    nobody.get(expect("form", "none", ""), "/wp-login.php");
    nobody.post(
        expect("small-window", "account_login", "admin"),
        "/wp-login.php",
        &[
            ("log", "admin@example.com"),
            ("pwd", PASSWORD),
            ("interim-login", "1"),
            ("testcookie", "1"),
        ],
    );
    let mut nobody = site.browser();
    let lost = nobody.post(
        expect("forgotten", "account_edit", "admin"),
        "/wp-login.php?action=lostpassword",
        &[("user_login", "admin"), ("redirect_to", "")],
    );
    assert_eq!(lost.status, 302, "{}", lost.text());
    nobody.post(
        expect("register", "account_registration", "eve"),
        "/wp-login.php?action=register",
        &[("user_login", "eve"), ("user_email", "eve@example.com")],
    );

    // REST.
    let created = admin.rest(
        expect("rest-create", "page_edit", "admin"),
        "POST",
        "/wp-json/wp/v2/posts",
        &[],
        r#"{"title": "5ecret", "content": "5ecret", "status": "publish"}"#,
    );
    assert_eq!(created.status, 201, "{}", created.text());
    let created: serde_json::Value = serde_json::from_slice(&created.body).expect("JSON");
    let id = created["id"].as_u64().expect("an id");
    admin.rest(
        expect("rest-edit", "page_edit", "admin"),
        "PUT",
        &format!("/wp-json/wp/v2/posts/{id}"),
        &[],
        r#"{"title": "x"}"#,
    );
    admin.rest(
        expect("rest-route", "page_edit", "admin"),
        "POST",
        &format!("/?rest_route=/wp/v2/posts/{id}"),
        &[],
        r#"{"title": "x"}"#,
    );
    let user = admin.rest(
        expect("rest-user", "account_edit", "admin"),
        "POST",
        "/index.php/wp-json/wp/v2/users",
        &[],
        r#"{"username": "bob", "email": "bob@example.com", "password": "5ecret-correct-horse", "roles": ["author"]}"#,
    );
    assert_eq!(user.status, 201, "{}", user.text());
    admin.rest(
        expect("rest-password", "account_password_change", "admin"),
        "POST",
        "/wp-json/wp/v2/users/me",
        &[],
        &format!(r#"{{"password": "{PASSWORD}"}}"#),
    );
    // A new password ends the user's sessions.
    admin.sign_in(expect("login-again", "account_login", "admin"), "admin", PASSWORD);
    let application = admin.rest(
        expect("application-password", "account_edit", "admin"),
        "POST",
        "/wp-json/wp/v2/users/me/application-passwords",
        &[],
        r#"{"name": "app"}"#,
    );
    assert_eq!(application.status, 201, "{}", application.text());
    let application: serde_json::Value = serde_json::from_slice(&application.body).expect("JSON");
    let password = application["password"].as_str().expect("a password");
    let basic = format!("Basic {}", STANDARD.encode(format!("admin:{password}")));
    let mut app = site.browser();
    let text = br#"{"title": "5ecret"}"#;
    let made = app.request(
        expect("app-create", "page_edit", "admin"),
        "POST",
        "/wp-json/wp/v2/posts",
        &[("Authorization", &basic), JSON],
        text,
    );
    assert_eq!(made.status, 201, "{}", made.text());
    let wrong_basic = format!("Basic {}", STANDARD.encode("admin:5ecret"));
    app.request(
        expect("app-wrong", "account_login_fail", "admin"),
        "POST",
        "/wp-json/wp/v2/posts",
        &[("Authorization", &wrong_basic), JSON],
        text,
    );
    app.request(expect("rest-nobody", "none", ""), "POST", "/wp-json/wp/v2/posts", &[JSON], text);
    admin.get(expect("rest-read", "none", ""), "/wp-json/wp/v2/posts");
    admin.rest(
        expect("rest-delete", "page_delete", "admin"),
        "POST",
        &format!("/wp-json/wp/v2/posts/{id}"),
        &[("X-HTTP-Method-Override", "DELETE")],
        "{}",
    );

    // The administration.
    let nonce = admin.hidden("/wp-admin/user-new.php", "_wpnonce_create-user");
    admin.post(
        expect("new-user", "account_edit", "admin"),
        "/wp-admin/user-new.php",
        &[
            ("action", "createuser"),
            ("_wpnonce_create-user", &nonce),
            ("user_login", "dave"),
            ("email", "dave@example.com"),
            ("pass1", PASSWORD),
            ("pass2", PASSWORD),
            ("role", "subscriber"),
        ],
    );
    let dave = site.wordpress.sql("SELECT ID FROM wp_users WHERE user_login = 'dave'");
    let nonce = admin.hidden("/wp-admin/users.php", "_wpnonce");
    let roles = format!(
        "/wp-admin/users.php?action=-1&new_role=contributor&users%5B%5D={dave}&_wpnonce={nonce}&changeit=Change"
    );
    assert_eq!(admin.get(expect("roles", "account_edit", "admin"), &roles).status, 302);
    let nonce = admin.hidden(&format!("/wp-admin/user-edit.php?user_id={dave}"), "_wpnonce");
    admin.post(
        expect("edit-user", "account_edit", "admin"),
        &format!("/wp-admin/user-edit.php?user_id={dave}"),
        &[
            ("action", "update"),
            ("_wpnonce", &nonce),
            ("user_id", &dave),
            ("email", "dave@example.com"),
            ("nickname", "dave"),
            ("role", "contributor"),
            ("checkuser_id", "1"),
        ],
    );
    let nonce = admin.hidden("/wp-admin/profile.php", "_wpnonce");
    admin.post(
        expect("profile", "account_edit", "admin"),
        "/wp-admin/profile.php",
        &[
            ("action", "update"),
            ("_wpnonce", &nonce),
            ("user_id", "1"),
            ("email", "admin@example.com"),
            ("nickname", "admin"),
            ("checkuser_id", "1"),
        ],
    );
    let activate = admin.link("/wp-admin/plugins.php", "action=activate&plugin=nothing.php");
    admin.get(expect("plugin-on", "page_edit", "admin"), &activate);
    let deactivate = admin.link("/wp-admin/plugins.php", "action=deactivate&plugin=nothing.php");
    admin.get(expect("plugin-off", "page_edit", "admin"), &deactivate);
    admin.get(expect("plugins-read", "none", ""), "/wp-admin/plugins.php");
    let nonce = admin.hidden("/wp-admin/options-general.php", "_wpnonce");
    admin.post(
        expect("options", "page_edit", "admin"),
        "/wp-admin/options.php",
        &[
            ("option_page", "general"),
            ("action", "update"),
            ("_wpnonce", &nonce),
            ("blogname", "Blog"),
            ("blogdescription", "x"),
            ("users_can_register", "1"),
            ("default_role", "subscriber"),
            ("siteurl", "x"),
            ("home", "x"),
            ("admin_email", "admin@example.com"),
            ("new_admin_email", "admin@example.com"),
        ],
    );
    let nonce = admin.hidden("/wp-admin/options-permalink.php", "_wpnonce");
    admin.post(
        expect("permalinks", "page_edit", "admin"),
        "/wp-admin/options-permalink.php",
        &[
            ("_wpnonce", &nonce),
            ("selection", "/%postname%/"),
            ("permalink_structure", "/%postname%/"),
            ("submit", "x"),
        ],
    );
    let nonce = admin.hidden("/wp-admin/edit-tags.php?taxonomy=category", "_wpnonce_add-tag");
    admin.post(
        expect("category", "page_edit", "admin"),
        "/wp-admin/admin-ajax.php",
        &[
            ("action", "add-tag"),
            ("_wpnonce_add-tag", &nonce),
            ("taxonomy", "category"),
            ("tag-name", "news"),
            ("screen", "edit-category"),
            ("post_type", "post"),
        ],
    );

    // Content.
    let post = site.wordpress.sql(
        "SELECT ID FROM wp_posts WHERE post_type = 'post' AND post_status = 'publish' LIMIT 1",
    );
    let trash = admin.link("/wp-admin/edit.php", &format!("post={post}&action=trash"));
    assert_eq!(admin.get(expect("trash", "page_delete", "admin"), &trash).status, 302);
    let untrash = admin.link(
        "/wp-admin/edit.php?post_status=trash&post_type=post",
        &format!("post={post}&action=untrash"),
    );
    admin.get(expect("untrash", "page_edit", "admin"), &untrash);
    let nonce = admin.hidden("/wp-admin/edit.php", "_wpnonce");
    admin.get(
        expect("bulk-trash", "page_delete", "admin"),
        &format!(
            "/wp-admin/edit.php?_wpnonce={nonce}&action=trash&post%5B%5D={post}&post_type=post"
        ),
    );
    let delete = admin.link(
        "/wp-admin/edit.php?post_status=trash&post_type=post",
        &format!("post={post}&action=delete"),
    );
    admin.get(expect("delete", "page_delete", "admin"), &delete);
    admin.get(expect("posts-read", "none", ""), "/wp-admin/edit.php");
    let page = site.wordpress.sql(
        "SELECT ID FROM wp_posts WHERE post_type = 'page' AND post_status = 'publish' LIMIT 1",
    );
    let inline = admin.hidden("/wp-admin/edit.php?post_type=page", "_inline_edit");
    admin.post(
        expect("quick-edit", "page_edit", "admin"),
        "/wp-admin/admin-ajax.php",
        &[
            ("action", "inline-save"),
            ("post_ID", &page),
            ("_inline_edit", &inline),
            ("post_type", "page"),
            ("post_title", "5ecret"),
            ("post_name", "x"),
            ("post_view", "list"),
            ("screen", "edit-page"),
            ("_status", "publish"),
            ("comment_status", "open"),
        ],
    );
    admin.post(
        expect("heartbeat", "none", ""),
        "/wp-admin/admin-ajax.php",
        &[("action", "heartbeat"), ("interval", "60"), ("screen_id", "front")],
    );
    let nonce = admin.get("-", "/wp-admin/media-new.php").text();
    let nonce = nonce
        .split_once("\"_wpnonce\":\"")
        .and_then(|(_, rest)| rest.split('"').next())
        .expect("a nonce")
        .to_owned();
    let part = |name: &str, value: &str| {
        format!("--b\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
    };
    let upload = [
        part("_wpnonce", &nonce),
        part("short", "1"),
        "--b\r\nContent-Disposition: form-data; name=\"async-upload\"; filename=\"a.txt\"\r\nContent-Type: text/plain\r\n\r\n5ecret\r\n--b--\r\n".to_owned(),
    ]
    .concat();
    let uploaded = admin.request(
        expect("upload", "page_edit", "admin"),
        "POST",
        "/wp-admin/async-upload.php",
        &[("Content-Type", "multipart/form-data; boundary=b")],
        upload.as_bytes(),
    );
    assert!(uploaded.text().trim().parse::<u32>().is_ok(), "{}", uploaded.text());
    let export = admin.get(
        expect("export", "page_view", "admin"),
        "/wp-admin/export.php?download=true&content=all",
    );
    assert!(export.text().contains("<rss"), "{}", export.text());

    // Comments.
    let comment = [
        ("comment", "5ecret"),
        ("author", "x"),
        ("email", "x@example.com"),
        ("url", ""),
        ("comment_post_ID", &*page),
        ("comment_parent", "0"),
    ];
    site.wordpress.sql("UPDATE wp_posts SET comment_status = 'open'");
    let mut visitor = site.browser();
    visitor.cookies.insert("wordpress_logged_in_x".into(), "admin%7C1%7Cx%7Cx".into());
    assert_eq!(
        visitor
            .post(expect("comment-visitor", "page_edit", "N/A"), "/wp-comments-post.php", &comment)
            .status,
        302
    );
    let comment =
        [("comment", "another 5ecret"), ("comment_post_ID", &*page), ("comment_parent", "0")];
    admin.post(expect("comment", "page_edit", "admin"), "/wp-comments-post.php", &comment);
    let approve = admin.link("/wp-admin/edit-comments.php", "action=trashcomment");
    admin.get(expect("comment-trash", "page_delete", "admin"), &approve);

    // The old interface.
    let call = |method: &str, password: &str| {
        format!(
            "<?xml version=\"1.0\"?><methodCall><methodName>{method}</methodName><params><param><value><string>admin</string></value></param><param><value><string>{password}</string></value></param></params></methodCall>"
        )
    };
    let xml = ("Content-Type", "text/xml");
    nobody.request(
        expect("xmlrpc-wrong", "account_login_fail", "admin"),
        "POST",
        "//xmlrpc.php",
        &[xml],
        call("wp.getUsersBlogs", "5ecret").as_bytes(),
    );
    let one = "<value><struct><member><name>methodName</name><value><string>wp.getUsersBlogs</string></value></member><member><name>params</name><value><array><data><value><array><data><value><string>admin</string></value><value><string>5ecret</string></value></data></array></value></data></array></value></member></struct></value>";
    let multi = format!(
        "<?xml version=\"1.0\"?><methodCall><methodName>system.multicall</methodName><params><param><value><array><data>{}</data></array></value></param></params></methodCall>",
        one.repeat(20)
    );
    nobody.request(
        expect("xmlrpc-multicall", "account_login_fail", "admin"),
        "POST",
        "/xmlrpc.php",
        &[xml],
        multi.as_bytes(),
    );

    let odd = call("wp.getUsersBlogs", "5ecret").replace(
        "<string>admin</string>",
        "nobody<string a='>'><!-- <b> --><![CDATA[ad]]>m&#0105;n</string>",
    );
    nobody.request(
        expect("xmlrpc-odd", "account_login_fail", "admin"),
        "POST",
        "/xmlrpc.php",
        &[xml],
        odd.as_bytes(),
    );
    let calls: Vec<Value> = include_str!("bodies/xmlrpc.jsonl")
        .lines()
        .map(|line| serde_json::from_str(line).expect("a row"))
        .collect();
    let bodies: String = calls.iter().map(|row| format!("{}\n", row["body"])).collect();
    let script = include_str!("bodies/xmlrpc.php");
    fs::write(site.wordpress.path("www/calls.php"), script).expect("a script");
    let read = nobody.request("-", "POST", "/calls.php", &[xml], bodies.as_bytes()).text();
    assert_eq!(read.lines().count(), calls.len(), "{read}");
    for (row, line) in calls.iter().zip(read.lines()) {
        let read: Value = serde_json::from_str(line).expect("JSON");
        assert_eq!(row["wordpress"], read, "{}", row["body"]);
    }

    // A user with few rights.
    let mut dave = site.browser();
    dave.sign_in(expect("login-dave", "account_login", "dave"), "dave", PASSWORD);
    let refused = dave.rest(
        expect("refused", "page_error", "dave"),
        "POST",
        "/wp-json/wp/v2/settings",
        &[],
        r#"{"title": "x"}"#,
    );
    assert_eq!(refused.status, 403, "{}", refused.text());
    // With another user's cookie before his own.
    dave.cookies.insert("wordpress_logged_in_0".into(), "admin%7C1%7Cx%7Cx".into());
    dave.rest(
        expect("forged", "page_error", "dave"),
        "POST",
        "/wp-json/wp/v2/settings",
        &[],
        r#"{"title": "x"}"#,
    );
    dave.cookies.remove("wordpress_logged_in_0");

    // The end.
    let id = site.wordpress.sql("SELECT ID FROM wp_users WHERE user_login = 'eve'");
    let confirm = admin.link("/wp-admin/users.php", &format!("action=delete&user={id}"));
    let nonce = admin.hidden(&confirm, "_wpnonce");
    admin.post(
        expect("delete-user", "account_edit", "admin"),
        "/wp-admin/users.php",
        &[
            ("action", "dodelete"),
            ("_wpnonce", &nonce),
            ("users[]", &id),
            ("delete_option", "delete"),
        ],
    );
    admin.get(expect("cron", "none", ""), "/wp-cron.php?doing_wp_cron=1");
    let nonce = admin.hidden("/wp-admin/profile.php", "_wpnonce");
    admin.post(
        expect("own-password", "account_password_change", "admin"),
        "/wp-admin/profile.php",
        &[
            ("action", "update"),
            ("_wpnonce", &nonce),
            ("user_id", "1"),
            ("email", "admin@example.com"),
            ("nickname", "admin"),
            ("checkuser_id", "1"),
            ("pass1", PASSWORD),
            ("pass2", PASSWORD),
        ],
    );
    let old = admin.cookies.clone();
    let logout = admin.link("/wp-admin/index.php", "action=logout");
    admin.get(expect("logout", "account_logout", "admin"), &logout);
    admin.cookies = old;
    let ended = admin.post(
        expect("ended", "none", ""),
        "/wp-admin/options.php",
        &[("option_page", "general")],
    );
    assert_eq!(ended.status, 302, "{}", ended.text());

    let names = expected.iter().map(|(case, ..)| *case);
    let events = cases::events(&site.nginx, &site.sensor, names);
    let mut wrong = String::new();
    for (case, kind, user) in &expected {
        let got: Vec<_> = events
            .get(*case)
            .into_iter()
            .flatten()
            .map(|event| {
                let user = if is_alias(&event.user_name) { "unknown" } else { &event.user_name };
                (event.event_type.clone(), user.to_owned())
            })
            .collect();
        let as_expected = match &*got {
            [] => *kind == "none",
            [(got, who)] => got == kind && (*user == "*" || who == user),
            _ => false,
        };
        if !as_expected {
            wrong += &format!("\n{case}: expected {kind} {user}, got {got:?}");
        }
    }
    assert!(wrong.is_empty(), "of {} actions:{wrong}", expected.len());
    let with_events = expected.iter().filter(|(_, kind, _)| *kind != "none").count();
    assert!(with_events >= 40, "{with_events} actions with events");
    for request in site.sensor.requests() {
        let body = String::from_utf8_lossy(&request.body);
        assert!(!body.contains("5ecret"), "{body}");
    }
}
