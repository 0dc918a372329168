# shellcheck shell=bash
# Functions that the commands in this directory share; each command sources this file first.
# Progress goes to stderr, results to stdout.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
CARGO_TARGET_DIR=$(realpath -m "${CARGO_TARGET_DIR:-$ROOT/target}")
export CARGO_TARGET_DIR LC_ALL=C

# The suites of Debian for which packages are built, the oldest first.
# shellcheck disable=SC2034
PACKAGE_SUITES=(bookworm trixie forky)

say() { printf '%s\n' "$*" >&2; }

die() {
    say "${0##*/}: $*"
    exit 1
}

# Prints the comment at the top of the calling script.
usage() { sed -n '2,/^[^#]*$/s/^# \{0,1\}//p' "$0"; }

# step WHAT COMMAND...: runs the command, and reports every 15 seconds that it is still running. If $STEP_TIMES
# is set, the time that the command took is added to that file.
step() {
    local what=$1 start=$SECONDS status=0 result=finished
    shift
    say "==> $what"
    # The heartbeat ends when its pipe is closed, however this script ends. So the command must not inherit the
    # pipe.
    exec 9> >(heartbeat "$what")
    "$@" 9>&- || status=$?
    exec 9>&-
    ((status == 0)) || result=failed
    say "    $what: $result after $((SECONDS - start)) s"
    [[ ! ${STEP_TIMES-} ]] || printf '%5d  %s\n' "$((SECONDS - start))" "$what" >>"$STEP_TIMES"
    return "$status"
}

heartbeat() {
    local start=$SECONDS status=0
    while read -rt 15 || status=$?; ((status > 128)); do
        say "    $1: running for $((SECONDS - start)) s"
        status=0
    done
}

is_debian() { command -v apt-get >/dev/null; }

apt_get() {
    DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 \
        -o APT::Sandbox::User=root "$@" >&2
}

# The lock of the package lists has no time-out of its own.
apt_update() {
    local try
    for try in 1 2 3 4 5; do
        apt_get update && return
        ((try == 5)) || sleep 10
    done
    return 1
}

# A number for the version of a suite's package, which orders it after the packages of older suites.
release_of() {
    case $1 in
        bookworm) echo deb12 ;;
        trixie) echo deb13 ;;
        forky) echo deb14 ;;
        *) echo "$1" ;;
    esac
}

workspace_version() { sed -n 's/^version = "\(.*\)"/\1/p' "$ROOT/Cargo.toml" | head -n 1; }

# The oldest Rust that builds the module.
rust_version() { sed -n 's/^rust-version = "\(.*\)"/\1/p' "$ROOT/Cargo.toml"; }

# need PACKAGE...: installs missing packages, or prints the command for it. On a system other than Debian, the
# compiler's errors will show what is missing.
need() {
    is_debian || return 0
    local package installed missing=()
    # shellcheck disable=SC2016
    installed=$(dpkg-query -W -f '${Package}=${db:Status-Status}\n' "$@" 2>/dev/null || true)
    for package; do
        grep -qxF "$package=installed" <<<"$installed" || missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    local install=(install -y --no-install-recommends "${missing[@]}")
    ((EUID == 0)) || die "packages are missing. Run
  sudo apt-get update && sudo apt-get ${install[*]}"
    step "apt-get update" apt_update || die "apt-get update failed"
    step "apt-get ${install[*]}" apt_get "${install[@]}" || die "apt-get failed"
}

# The packages that every build needs.
need_toolchain() {
    need gcc libc6-dev make libclang-dev libpcre2-dev zlib1g-dev libssl-dev ca-certificates
    PATH=$PATH:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin
    local cure="Install Rust from https://rustup.rs:
  curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh" version
    command -v cargo >/dev/null || die "cargo not found. $cure"
    version=$(cargo --version | awk '{ print $2 }')
    printf '%s\n' "$(rust_version)" "$version" | sort -VC ||
        die "Rust $version is too old, $(rust_version) is needed. $cure"
}

# use_build [ARGUMENT...]: runs ci/build, and sets $nginx and $module to what it built.
use_build() {
    local output
    output=$("$ROOT/ci/build" "$@") || return
    nginx=$(sed -n 's/^nginx: //p' <<<"$output")
    module=$(sed -n 's/^module: //p' <<<"$output")
    [[ $nginx && $module ]]
}

# unpack DIRECTORY PACKAGE...: downloads Debian packages and unpacks them; nothing is installed. Several
# processes may do so at once: each fills a directory of its own, and the first one to finish wins.
unpack() {
    local directory=$1 part=$1.part.$BASHPID
    [[ ! -d $directory ]] || return 0
    if download "$part" "${@:2}" && [[ ! -d $directory ]]; then
        mv -T "$part" "$directory" || true
    fi
    rm -rf "$part"
    [[ -d $directory ]]
}

download() {
    local directory=$1 deb
    rm -rf "$directory" && mkdir -p "$directory" || return
    (cd "$directory" && apt_get download "${@:2}") || return
    for deb in "$directory"/*.deb; do
        dpkg -x "$deb" "$directory" || return
    done
}

# The package sources of this system's own distribution, one line each, without third-party sources.
system_sources() {
    local ID
    # shellcheck source=/dev/null
    . /etc/os-release
    # shellcheck disable=SC2016
    apt-get indextargets --format 'deb $(SITE) $(RELEASE) $(COMPONENT)' \
        'Created-By: Packages' "Origin: ${ID^}" | sort -u
}

# apt_of SUITE get|cache ARGUMENT...: runs apt with the package lists of a suite of Debian, on any Debian or
# Ubuntu. It installs nothing, so nothing is upgraded or conflicts.
apt_of() {
    local directory=$CARGO_TARGET_DIR/apt/$1
    "apt-$2" -qq -o APT::Sandbox::User=root -o Acquire::Retries=3 -o Dir::State::status=/dev/null \
        -o "Dir::State::lists=$directory/lists" -o "Dir::Cache=$directory/cache" \
        -o "Dir::Etc::sourcelist=$directory/sources.list" -o Dir::Etc::sourceparts=/dev/null \
        -o Dir::Etc::preferencesparts=/dev/null -o Dir::Etc::preferences=/dev/null "${@:3}"
}

# suite_sources SUITE [--without-updates]: the package sources of a suite, on this system's mirror.
suite_sources() {
    local sources mirror security=''
    sources=$(system_sources)
    mirror=${DEBIAN_MIRROR-$(awk '$3 !~ /-/ { print $2; exit }' <<<"$sources")}
    [[ $mirror == */debian* ]] || die "this system has no package source of Debian; name a mirror:
  DEBIAN_MIRROR=http://MIRROR/debian ${0##*/}"
    echo "deb $mirror $1 main"
    [[ $1 != sid && ${2-} != --without-updates ]] || return 0
    security=$(awk '$3 ~ /-security$/ { print $2; exit }' <<<"$sources")
    [[ ! $security ]] || echo "deb $security $1-security main"
}

# Fetches the package lists of a suite. If no mirror answers, the lists of an earlier run are used.
update_suite() {
    local directory=$CARGO_TARGET_DIR/apt/$1 sources
    mkdir -p "$directory"/{lists,cache/archives}/partial || return
    [[ -e $directory/sources.list ]] || sources=$(suite_sources "$1") || return
    [[ -e $directory/sources.list ]] || echo "$sources" >"$directory/sources.list"
    apt_of "$1" get update >&2 || apt_of "$1" cache show nginx-dev >/dev/null
}

# candidate SUITE PACKAGE: the version that would be installed.
candidate() {
    apt_of "$1" cache policy "$2" | sed -n 's/^ *Candidate: \([0-9].*\)/\1/p'
}

# Prints the path of the nginx of a suite of Debian, unpacked together with its nginx-dev. If it needs newer
# libraries than this system has, they are unpacked beside it, and only this nginx uses them.
suite_nginx() {
    local suite=$1 version directory libraries
    version=$(candidate "$suite" nginx-dev)
    [[ $version ]] || die "$suite has no nginx-dev"
    directory=$CARGO_TARGET_DIR/debian-nginx-$version
    if [[ ! -d $directory ]]; then
        mapfile -t libraries < <(suite_libraries "$suite")
        rm -rf "$directory.part"
        download_of "$suite" "$directory.part" "nginx=$version" "nginx-dev=$version" &&
            { runs "$directory.part/usr/sbin/nginx" ||
                add_libraries "$suite" "$directory.part" "$directory" "${libraries[@]}"; } || return
        mv -T "$directory.part" "$directory" || return
    fi
    runs "$directory/usr/sbin/nginx" || die "$directory/usr/sbin/nginx does not run"
    echo "$directory/usr/sbin/nginx"
}

runs() { "$1" -v 2>/dev/null; }

# download_of SUITE DIRECTORY PACKAGE...: downloads packages of a suite and unpacks them.
download_of() {
    local deb debs=$2/debs
    mkdir -p "$debs" || return
    (cd "$debs" && apt_of "$1" get download "${@:3}" >&2) || return
    for deb in "$debs"/*.deb; do
        dpkg -x "$deb" "$2" || return
    done
    rm -rf "$debs"
}

# The packages of the libraries that nginx and the module are linked with.
suite_libraries() {
    local direct
    mapfile -t direct < <(apt_of "$1" cache depends --important nginx |
        sed -n 's/^ *Depends: \(\(lib\|zlib\).*\)/\1/p')
    apt_of "$1" cache depends --important --recurse libgcc-s1 "${direct[@]}" | grep -E '^(lib|zlib)' | sort -u
}

# add_libraries SUITE DIRECTORY PLACE PACKAGE...: adds the libraries to DIRECTORY, which will be moved to PLACE.
add_libraries() {
    local loader
    need patchelf
    download_of "$1" "$2/libraries" "${@:4}" || return
    loader=$(cd "$2" && find libraries -name 'ld-linux*' ! -type d | head -n 1)
    [[ $loader ]] || return
    # RPATH, not RUNPATH, because it also applies to the libraries of the module.
    patchelf --set-interpreter "$3/$loader" --force-rpath --set-rpath "$(cd "$2" &&
        find libraries -name '*.so.*' -printf "$3/%h\n" | sort -u | paste -s -d :)" "$2/usr/sbin/nginx"
}

# Prints the path of this system's own nginx, unpacked together with its nginx-dev.
debian_nginx() {
    local nginx
    if ! nginx=$(unpack_debian_nginx); then
        ((EUID == 0)) || die "Debian's nginx cannot be downloaded. Run
  sudo apt-get update"
        apt_update || die "apt-get update failed"
        nginx=$(unpack_debian_nginx) || die "Debian's nginx cannot be downloaded"
    fi
    ! ldd "$nginx" | grep 'not found' >&2 || die "$nginx lacks these libraries"
    echo "$nginx"
}

unpack_debian_nginx() {
    local version directory
    # The version of nginx-dev, because nginx itself may have a newer one from an archive without nginx-dev.
    version=$(apt-cache policy nginx-dev | sed -n 's/^ *Candidate: \([0-9].*\)/\1/p')
    [[ $version ]] || return
    directory=$CARGO_TARGET_DIR/debian-nginx-$version
    unpack "$directory" "nginx=$version" "nginx-dev=$version" || return
    echo "$directory/usr/sbin/nginx"
}

# debian_tools NAME PACKAGE...: prints a directory with these packages, unpacked for the tests.
debian_tools() {
    local directory=$CARGO_TARGET_DIR/debian-$1
    if ! unpack "$directory" "${@:2}"; then
        ((EUID == 0)) || die "Debian's packages ${*:2} cannot be downloaded. Run
  sudo apt-get update"
        apt_update || die "apt-get update failed"
        unpack "$directory" "${@:2}" || die "Debian's packages ${*:2} cannot be downloaded"
    fi
    echo "$directory"
}

# Prints a directory with WordPress, PHP-FPM and MariaDB for the tests.
debian_wordpress() {
    debian_missing wordpress wordpress wordpress-theme-twentytwentythree php-fpm php-mysql php-xml \
        mariadb-server-core mariadb-client-core
}

# debian_missing NAME PACKAGE...: prints a directory with these packages and their dependencies, unpacked,
# without what this machine already has. Apache is left out, because it does not run from a directory.
debian_missing() {
    local directory=$CARGO_TARGET_DIR/debian-$1
    if ! unpack_missing "$directory" "${@:2}"; then
        ((EUID == 0)) || die "Debian's packages ${*:2} cannot be downloaded. Run
  sudo apt-get update"
        apt_update || die "apt-get update failed"
        unpack_missing "$directory" "${@:2}" || die "Debian's packages ${*:2} cannot be downloaded"
    fi
    echo "$directory"
}

unpack_missing() {
    local simulated packages=()
    simulated=$(apt-get install -s --no-install-recommends "${@:2}" 2>/dev/null) || return
    mapfile -t packages < <(sed -n '/apache2/!s/^Inst \([^ ]*\).*/\1/p' <<<"$simulated")
    if ((${#packages[@]})); then
        unpack "$1" "${packages[@]}"
    else
        mkdir -p "$1"
    fi
}
