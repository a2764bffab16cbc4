#!/usr/bin/env bash
# Installs what is missing on a Debian machine, and nothing when nothing is.
#
#   scripts/setup.sh build    what cargo needs: a C compiler, make, pkg-config, zlib, OpenSSL
#   scripts/setup.sh test     that, and what the tests talk to: real Kafka, RocketMQ and S3 servers and a small
#                             Java tool for each broker, all in a tools directory outside the checkout
#
# Rust is expected to be there. MILLSTREAM_TOOLS moves the tools directory.
set -euo pipefail

readonly rust_needed=1.95
readonly kafka=4.3.1 rocketmq=5.5.0 log4j=2.25.3 versitygw=v1.8.0 maven_plugin=3.8.1

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
tools=${MILLSTREAM_TOOLS:-${XDG_CACHE_HOME:-$HOME/.cache}/millstream/tools}
[[ $tools == /* ]] || tools=$PWD/$tools
scratch=
trap '[[ -z $scratch ]] || rm -rf "$scratch"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

say() { echo "setup: $*"; }
die() { echo "setup: $*" >&2; exit 1; }

# at_least VERSION WANTED
at_least() { printf '%s\n%s\n' "$2" "$1" | sort -VC; }

# Runs a command and shows what it printed only if it fails.
quietly() {
    local log status=0
    log=$(mktemp)
    "$@" </dev/null >"$log" 2>&1 || status=$?
    ((status == 0)) || { cat "$log" >&2; echo "setup: this failed: $*" >&2; }
    rm -f "$log"
    return "$status"
}

as_root() {
    if ((EUID == 0)); then "$@"; else sudo "$@"; fi
}

updated=
apt_update() {
    [[ $updated ]] || quietly as_root apt-get -q update
    updated=yes
}

# apt_install PACKAGE... (or options of apt-get install)
apt_install() {
    command -v apt-get >/dev/null || die "no apt-get here; please install: $*"
    apt_update
    say "installing $*"
    quietly as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends install "$@"
}

# --- packages -------------------------------------------------------------------------------------------------------

packages=()

need() { # COMMAND PACKAGE
    command -v "$1" >/dev/null || packages+=("$2")
}

need_library() { # PKG-CONFIG-NAME PACKAGE
    pkg-config --exists "$1" 2>/dev/null || packages+=("$2")
}

check_rust() {
    local found
    found=$(rustc --version 2>/dev/null | cut -d' ' -f2) || true
    at_least "${found:-0}" "$rust_needed" ||
        die "Rust $rust_needed or newer is needed, found ${found:-none}: install the stable toolchain with rustup"
    command -v cargo >/dev/null || die "rustc is here but cargo is not: install both with rustup"
}

java_release() {
    local found
    found=$(javac -version 2>/dev/null) || true
    found=${found#javac }
    echo "${found:-0}"
}

go_release() {
    local found
    found=$(go env GOVERSION 2>/dev/null) || true
    echo "${found#go}"
}

install_packages() { # build|test
    need cc build-essential
    need c++ build-essential
    need make make
    need pkg-config pkg-config
    need_library zlib zlib1g-dev
    need_library openssl libssl-dev
    if [[ $1 == test ]]; then
        at_least "$(java_release)" 17 || packages+=(openjdk-17-jdk-headless)
        need mvn maven
        [[ -f /etc/ssl/certs/ca-certificates.crt ]] || packages+=(ca-certificates)
    fi
    if ((${#packages[@]})); then
        mapfile -t packages < <(printf '%s\n' "${packages[@]}" | sort -u)
        apt_install "${packages[@]}"
    fi
}

# Any Go from 1.21 on fetches by itself the newer one that a module asks for. Debian 12's own is too old for that, the
# one in its backports is not.
install_go() {
    local candidate codename uri
    ! at_least "$(go_release)" 1.21 || return 0
    command -v apt-get >/dev/null || die "no apt-get here; please install Go 1.21 or newer"
    apt_update
    candidate=$(LC_ALL=C apt-cache policy golang-go | awk '$1 == "Candidate:" { print $2 }')
    if dpkg --compare-versions "$candidate" ge 2:1.21~; then
        apt_install golang-go
    else
        # shellcheck source=/dev/null
        codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
        # From the mirror that this machine already uses.
        # shellcheck disable=SC2016  # apt expands these
        uri=$(apt-get indextargets --format '$(CODENAME) $(REPO_URI)' |
            awk -v codename="$codename" '$1 == codename && !seen++ { print $2 }')
        [[ $uri ]] || die "found no mirror of Debian $codename; please install Go 1.21 or newer"
        say "enabling $codename-backports for Go"
        as_root tee "/etc/apt/sources.list.d/$codename-backports.list" >/dev/null <<<"deb $uri $codename-backports main"
        updated=
        apt_install -t "$codename-backports" golang-go
    fi
    hash -r
    at_least "$(go_release)" 1.21 || die "Go 1.21 or newer is needed, found $(go_release) at $(command -v go)"
}

# --- the tools directory --------------------------------------------------------------------------------------------

# Each part is a directory with a stamp that says what is in it. A part is made beside its place and then renamed, so
# that an interrupted run leaves the old part or the new one, never half of one.

current() { # PART STAMP
    [[ -f $tools/$1/.stamp && $(<"$tools/$1/.stamp") == "$2" ]]
}

begin() {
    scratch=$(mktemp -d "$tools/.new.XXXXXX")
    chmod 755 "$scratch"
}

finish() { # PART STAMP
    echo "$2" >"$scratch/.stamp"
    rm -rf "${tools:?}/$1"
    mv -T "$scratch" "$tools/$1"
    scratch=
}

fetch_jars() { # PART GROUP:ARTIFACT:VERSION...
    local part=$1 group artifact version
    shift
    ! current "$part" "$*" || return 0
    say "fetching the jars of $part"
    begin
    {
        echo '<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>'
        echo '<groupId>millstream</groupId><artifactId>jars</artifactId><version>1</version><dependencies>'
        for coordinates in "$@"; do
            IFS=: read -r group artifact version <<<"$coordinates"
            echo "<dependency><groupId>$group</groupId><artifactId>$artifact</artifactId>" \
                "<version>$version</version></dependency>"
        done
        echo '</dependencies></project>'
    } >"$scratch/pom.xml"
    quietly mvn -q -B -Dstyle.color=never -f "$scratch/pom.xml" \
        "org.apache.maven.plugins:maven-dependency-plugin:$maven_plugin:copy-dependencies" \
        -DincludeScope=runtime "-DoutputDirectory=$scratch"
    finish "$part" "$*"
}

build_versitygw() {
    ! current versitygw "$versitygw" || return 0
    say "building versitygw $versitygw, an S3 server (a minute or two)"
    begin
    # Debian's Go is told not to fetch a newer one of itself.
    quietly env "GOBIN=$scratch" GOTOOLCHAIN=auto CGO_ENABLED=0 \
        go install -trimpath "github.com/versity/versitygw/cmd/versitygw@$versitygw"
    finish versitygw "$versitygw"
}

# Two tools with a class path each: the two sets of jars hold different versions of the same libraries.
compile_java() {
    local source=$here/tests/java stamp
    stamp="kafka $kafka, rocketmq $rocketmq, $(cat "$source"/* | sha256sum | cut -d' ' -f1)"
    ! current java "$stamp" || return 0
    say "compiling the Java test tools"
    begin
    quietly javac -nowarn -proc:none -d "$scratch/classes" -cp "$tools/kafka/*" "$source/KafkaTool.java"
    quietly javac -nowarn -proc:none -d "$scratch/classes" -cp "$tools/rocketmq/*" "$source/RocketmqTool.java"
    cp "$source/rmq.logback.xml" "$scratch/classes"
    quietly jar cf "$scratch/tool.jar" -C "$scratch/classes" .
    rm -r "$scratch/classes"
    finish java "$stamp"
}

# What a tool's JVM loads at every start, ready to map: it halves the second that each call costs. An archive is made
# where it stays, because it remembers its class path; without one a call is only slower.
archive_classes() { # PART CLASS
    local archive=$tools/java/$1.jsa
    [[ ! -f $archive ]] || return 0
    # There is nobody to wait for; it has loaded the client by the time it gives up.
    java -Xlog:disable -XX:+UseSerialGC "-XX:ArchiveClassesAtExit=$archive" -cp "$tools/$1/*:$tools/java/tool.jar" \
        "$2" wait 127.0.0.1:1 1 >/dev/null 2>&1 || true
}

case ${1:-} in
    build | test) ;;
    *) die "usage: scripts/setup.sh build|test" ;;
esac
check_rust
install_packages "$1"
if [[ $1 == test ]]; then
    install_go
    mkdir -p "$tools"
    fetch_jars kafka "org.apache.kafka:kafka_2.13:$kafka" "org.apache.kafka:kafka-server:$kafka" \
        "org.apache.kafka:kafka-tools:$kafka" "org.apache.logging.log4j:log4j-slf4j-impl:$log4j" \
        "org.apache.logging.log4j:log4j-core:$log4j"
    fetch_jars rocketmq "org.apache.rocketmq:rocketmq-namesrv:$rocketmq" \
        "org.apache.rocketmq:rocketmq-broker:$rocketmq" "org.apache.rocketmq:rocketmq-tools:$rocketmq"
    build_versitygw
    compile_java
    archive_classes kafka KafkaTool
    archive_classes rocketmq RocketmqTool
fi
