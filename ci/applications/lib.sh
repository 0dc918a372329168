# shellcheck shell=bash
# Functions that the commands in this directory share: they run programs of Debian's packages, PostgreSQL and
# Mattermost from directories. Each command sources ci/lib.sh first. $golang and $postgresql are directories of
# debian_missing.

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
