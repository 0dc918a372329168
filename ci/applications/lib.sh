# shellcheck shell=bash
# Functions that the commands in this directory share: they run programs of Debian's packages, PostgreSQL, Mattermost
# and Nextcloud from directories. Each command sources ci/lib.sh first. $golang, $postgresql and $php are directories
# of debian_missing.

built=$CARGO_TARGET_DIR/applications

# offline COMMAND...: runs a command whose child processes end with it, and that has no network but its own
# loopback.
offline() {
    # shellcheck disable=SC2016
    local inside='ip link set lo up && exec "$@"' alone=(--net --pid --fork --kill-child --mount-proc)
    if ((EUID == 0)); then
        unshare --mount "${alone[@]}" sh -c "$inside" sh "$@"
    else
        unshare --map-root-user --mount "${alone[@]}" sh -c "$inside" sh \
            unshare --map-user="$(id -u)" --map-group="$(id -g)" -- "$@"
    fi
}

# begin WHAT COMMAND...: like step, but without a heartbeat, which servers that the command starts would keep
# alive.
begin() {
    say "==> $1"
    "${@:2}"
}

# If root runs this, servers run as nobody, because PostgreSQL refuses root.
as_nobody() {
    if ((EUID == 0)); then
        setpriv --reuid=nobody --regid=nogroup --clear-groups -- "$@"
    else
        "$@"
    fi
}

# program DIRECTORY PATTERN: prints the path of a program that was unpacked, or is installed on this machine.
program() {
    local path
    for path in "$1"/$2 /$2; do
        [[ ! -x $path ]] || { echo "$path" && return; }
    done
    die "there is no $2"
}

# use_libraries DIRECTORY: lets programs find the unpacked libraries.
use_libraries() {
    local directory
    for directory in "$1"/usr/lib/*-linux-gnu*; do
        [[ ! -d $directory ]] || LD_LIBRARY_PATH=$directory${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
    done
    export LD_LIBRARY_PATH=${LD_LIBRARY_PATH-}
}

# wait_until WHAT LOG COMMAND...: waits until the command succeeds; after two minutes, it fails with the end of
# the log.
wait_until() {
    local start=$SECONDS
    until "${@:3}" &>/dev/null; do
        if ((SECONDS - start > 120)); then
            tail -n 20 "$2" >&2
            die "waited in vain for $1"
        fi
        sleep 0.2
    done
}

# show FILE...: prints their ends.
show() { tail -n 20 "$@" >&2 || true; }

# show_log FILE: prints its last errors and warnings.
show_log() { grep -E '"level":"(error|warn)"' "$1" | tail -n 20 >&2 || true; }

# start_postgres DIRECTORY [ADDRESS]: listens on a socket in that directory, and on the address if given. Sets
# $PGHOST.
start_postgres() {
    local directory=$1 postgres
    postgres=$(program "${postgresql:?}" 'usr/lib/postgresql/*/bin/postgres') || return
    export PGHOST=$directory PGUSER=postgres PGDATABASE=postgres
    as_nobody "${postgres%/*}/initdb" --auth=trust --username=postgres --encoding=UTF8 --no-sync \
        "$directory/data" >"$directory/initdb.log" || return
    as_nobody "$postgres" -D "$directory/data" -k "$directory" -c listen_addresses="${2-}" -c fsync=off \
        -c log_min_messages=fatal >"$directory/postgres.log" 2>&1 &
    wait_until PostgreSQL "$directory/postgres.log" "${postgres%/*}/pg_isready" --quiet
    psql=${postgres%/*}/psql
}

# sql DATABASE STATEMENT: prints the rows, with tabs between the columns.
sql() { "$psql" --no-psqlrc --quiet --tuples-only --no-align --field-separator=$'\t' --dbname="$1" -c "$2"; }

# build_mattermost CHECKOUT: builds the server and sets $mattermost to it. Go's compiled packages are kept.
build_mattermost() {
    local go
    [[ -e $1/cmd/mattermost/main.go && -d $1/vendor ]] ||
        die "$1 is no checkout of mattermost-server with its vendored modules (versions 5)"
    go=$(program "${golang:?}" 'usr/lib/go-*/bin/go') || return
    mattermost=$built/mattermost
    mkdir -p "$built"
    (cd "$1" && CGO_ENABLED=0 GOROOT=${go%/bin/go} GOPATH=$built/go GOCACHE=$built/go-cache GOPROXY=off \
        GOTOOLCHAIN=local nice -n 5 "$go" build -mod=vendor -p 2 -trimpath -buildvcs=false -o "$mattermost" ./cmd/mattermost)
}

# start_mattermost CHECKOUT DIRECTORY: listens on 127.0.0.1:8065, with the database "mattermost" of
# start_postgres.
start_mattermost() {
    local directory=$2 part
    sql postgres 'CREATE DATABASE mattermost' || return
    for part in fonts i18n templates; do
        cp -r "$1/$part" "$directory/" || return
    done
    mkdir "$directory"/{client,data,logs,plugins}
    cat >"$directory/config.json" <<-EOF
	{
	  "ServiceSettings": {
	    "SiteURL": "https://mattermost.example.com", "ListenAddress": "127.0.0.1:8065",
	    "WebserverMode": "disabled", "TrustedProxyIPHeader": ["X-Forwarded-For"],
	    "EnableMultifactorAuthentication": true, "EnableUserAccessTokens": true, "EnableBotAccountCreation": true,
	    "EnableOAuthServiceProvider": true, "EnableEmailInvitations": true, "EnableCustomEmoji": true,
	    "EnableAPITeamDeletion": true, "EnableAPIChannelDeletion": true, "EnableSecurityFixAlert": false,
	    "EnableLinkPreviews": false, "AllowedUntrustedInternalConnections": "127.0.0.1",
	    "CollapsedThreads": "default_on", "EnableLocalMode": false
	  },
	  "TeamSettings": { "EnableOpenServer": true, "EnableUserDeactivation": true },
	  "SqlSettings": {
	    "DriverName": "postgres", "DataSource": "user=postgres dbname=mattermost host=$PGHOST sslmode=disable"
	  },
	  "FileSettings": {
	    "Directory": "$directory/data/", "EnablePublicLink": true,
	    "PublicLinkSalt": "a-salt-for-links-of-this-run-alone"
	  },
	  "EmailSettings": { "SendEmailNotifications": false, "SendPushNotifications": false },
	  "LogSettings": {
	    "ConsoleLevel": "INFO", "FileLocation": "$directory/logs", "EnableDiagnostics": false, "EnableSentry": false
	  },
	  "NotificationLogSettings": { "EnableConsole": false, "EnableFile": false },
	  "PluginSettings": {
	    "Directory": "$directory/plugins", "ClientDirectory": "$directory/client", "EnableUploads": true,
	    "EnableMarketplace": false, "AutomaticPrepackagedPlugins": false, "EnableHealthCheck": false
	  },
	  "ExperimentalAuditSettings": { "FileEnabled": true, "FileName": "$directory/logs/audit.log" },
	  "AnnouncementSettings": { "AdminNoticesEnabled": false, "UserNoticesEnabled": false },
	  "ImageProxySettings": { "Enable": false }
	}
	EOF
    ((EUID != 0)) || chown -R nobody:nogroup "$directory"
    (cd "$directory" && as_nobody env MM_SERVER_PATH="$directory" "$mattermost" server --config "$directory/config.json" \
        --disableconfigwatch >"$directory/logs/console.log" 2>&1) &
    wait_until Mattermost "$directory/logs/console.log" \
        curl --fail --silent --max-time 5 http://127.0.0.1:8065/api/v4/system/ping
}

# The extensions of PHP that Nextcloud needs, in the order in which they can be loaded.
nextcloud_extensions=(ctype exif fileinfo gettext iconv pdo phar posix sysvsem tokenizer xml dom simplexml xmlreader
    xmlwriter bcmath curl gd gmp intl mbstring sqlite3 pdo_sqlite zip)

# php_settings DIRECTORY: writes the php.ini there.
php_settings() {
    local name file
    {
        printf '%s\n' 'memory_limit = 512M' 'display_errors = 0' 'sendmail_path = /bin/true' \
            "sys_temp_dir = $1/tmp" "upload_tmp_dir = $1/tmp" "session.save_path = $1/tmp" \
            'upload_max_filesize = 64M' 'post_max_size = 64M'
        for name in opcache "${nextcloud_extensions[@]}"; do
            file=$(extension "$name") || continue
            [[ $name == opcache ]] && echo "zend_extension = $file" || echo "extension = $file"
        done
    } >"$1/php.ini"
}

# extension NAME: prints the path of an extension of PHP; some are built in.
extension() {
    local path
    for path in "${php:?}"/usr/lib/php/2*/"$1.so" /usr/lib/php/2*/"$1.so"; do
        [[ ! -e $path ]] || { echo "$path" && return; }
    done
    return 1
}

# install_nextcloud CHECKOUT DIRECTORY: with its settings and data there, and the account "admin". What slows down who
# guesses passwords is switched off.
install_nextcloud() {
    local directory=$2 cli occ
    cli=$(program "${php:?}" 'usr/bin/php[0-9]*') || return
    occ=(as_nobody env PHP_INI_SCAN_DIR='' NEXTCLOUD_CONFIG_DIR="$directory/config" "$cli" -c "$directory/php.ini"
        "$1/occ" --no-interaction)
    php_settings "$directory" || return
    cat >"$directory/config/run.config.php" <<-'EOF'
	<?php
	$CONFIG = [
	    'trusted_domains' => ['cloud.example.com'],
	    'overwrite.cli.url' => 'https://cloud.example.com',
	    'has_internet_connection' => false,
	    'appstoreenabled' => false,
	    'updatechecker' => false,
	    'skeletondirectory' => '',
	    'auth.bruteforce.protection.enabled' => false,
	    'ratelimit.protection.enabled' => false,
	    'memcache.local' => '\\OC\\Memcache\\ArrayCache',
	];
	EOF
    {
        "${occ[@]}" maintenance:install --database=sqlite --data-dir="$directory/data" --admin-user=admin \
            --admin-pass=Correct-horse-1 &&
            "${occ[@]}" background:cron &&
            "${occ[@]}" config:app:set password_policy enforceHaveIBeenPwned --value=0
    } >"$directory/install.log" 2>&1
}

# start_php DIRECTORY: PHP-FPM with the php.ini there, at the socket php.sock.
start_php() {
    local directory=$1 fpm
    fpm=$(program "${php:?}" 'usr/sbin/php-fpm[0-9]*') || return
    cat >"$directory/fpm.conf" <<-EOF
	[global]
	error_log = $directory/fpm.log
	daemonize = no
	[www]
	listen = $directory/php.sock
	pm = static
	pm.max_children = 3
	env[NEXTCLOUD_CONFIG_DIR] = $directory/config
	EOF
    as_nobody env PHP_INI_SCAN_DIR='' "$fpm" -c "$directory/php.ini" -y "$directory/fpm.conf" \
        >"$directory/fpm.out" 2>&1 &
    wait_until PHP-FPM "$directory/fpm.out" test -S "$directory/php.sock"
}
