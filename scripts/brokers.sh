#!/usr/bin/env bash
# One set of real servers on loopback, all of it in one directory: Kafka, RocketMQ (a name server and a broker) and
# versitygw, which speaks S3.
#
#   brokers.sh up DIR [--fixed-ports]         start what is not running, wait until it serves, write DIR/env
#   brokers.sh down DIR [--now]               end all of it (--now: kill -9); the data stays
#   brokers.sh stop DIR SERVER [--kill]       end one server: kafka, rocketmq (the broker), namesrv or s3
#   brokers.sh start DIR SERVER               start it again, on its ports and data, and wait until it serves; or one
#                                             that up leaves out: kafka2, a second node of the same cluster, or
#                                             rocketmq2 and rocketmq3, more masters at the same name server, the third
#                                             of which asks who it is (ACL); stop ends it
#   brokers.sh restart DIR SERVER [--kill]
#   brokers.sh env DIR                        print DIR/env: what the tests want to know
#   brokers.sh run DIR -- COMMAND...          run a command with that environment
#   brokers.sh with DIR -- COMMAND...         up, run, down --now, whatever happens; ends with the command's status
#
# Ports are free ones and stay the directory's own; --fixed-ports takes those that everybody knows. The servers are
# tuned to start soon and to live briefly: MILLSTREAM_BROKER_JAVA_OPTS= (empty) gives them the JVM's full compiler.
#
# Kafka has a second door, with TLS and names (SASL_SSL). There an admin may do everything, and a guest what an access
# list allows. Whoever comes without a name, by the first door, may do everything, too. Of RocketMQ's brokers only the
# third asks for names; there the admin may do everything, and RocketMQ's tools come as the admin.
set -euo pipefail

tools=${MILLSTREAM_TOOLS:-${XDG_CACHE_HOME:-$HOME/.cache}/millstream/tools}
[[ $tools == /* ]] || tools=$PWD/$tools
read -ra java_opts <<<"${MILLSTREAM_BROKER_JAVA_OPTS--XX:TieredStopAtLevel=1 -XX:+UseSerialGC}"
readonly servers=(namesrv rocketmq kafka s3) extras=(kafka2 rocketmq2 rocketmq3)
# What servers are called beside each other.
declare -rA node=([kafka]=1 [kafka2]=2) master=([rocketmq]=broker-a [rocketmq2]=broker-b [rocketmq3]=broker-c)
readonly s3_key=testkey s3_secret=testsecret bucket=lake
readonly admin=admin admin_password=admin-hunter2 guest=guest guest_password=guest-hunter2 store_password=keystore
readonly patience=120 # seconds until a server must serve
readonly grace=20     # seconds from SIGTERM to SIGKILL; a RocketMQ broker takes 12

die() { echo "brokers: $*" >&2; exit 1; }
usage() { sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" >&2; exit 2; }

# --- ports ----------------------------------------------------------------------------------------------------------

listening() { (: <>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# DIR/ports is written once: Kafka keeps the address of its controller in its data.
choose_ports() { # --fixed-ports|""
    local base number free
    [[ -f $dir/ports ]] && return 0
    if [[ $1 ]]; then
        printf '%s\n' kafka=9092 controller=9093 sasl=9094 kafka2=9095 namesrv=9876 rocketmq=10911 ha=10912 \
            rocketmq2=10921 ha2=10922 rocketmq3=10931 ha3=10932 s3=7070 >"$dir/ports"
        return 0
    fi
    # Below the ports that the kernel gives to outgoing connections, so that they are still free after a restart. A
    # RocketMQ broker also takes its port less 2.
    for _ in {1..100}; do
        base=$((20000 + RANDOM % 600 * 20)) free=yes
        for number in $(seq "$base" $((base + 15))); do
            ! listening "$number" || free=
        done
        [[ ! $free ]] || break
    done
    [[ $free ]] || die "found no free ports"
    printf '%s\n' "kafka=$base" "controller=$((base + 1))" "namesrv=$((base + 2))" "s3=$((base + 3))" \
        "sasl=$((base + 5))" "rocketmq=$((base + 6))" "ha=$((base + 7))" "kafka2=$((base + 8))" \
        "rocketmq2=$((base + 11))" "ha2=$((base + 12))" "rocketmq3=$((base + 15))" "ha3=$((base + 14))" >"$dir/ports"
}

load_ports() {
    local name value
    [[ -f $dir/ports ]] || die "no servers were ever started in $dir"
    while IFS='=' read -r name value; do port[$name]=$value; done <"$dir/ports"
    [[ ${port[rocketmq3]-} ]] || die "$dir is of an older version, with other servers: remove it"
}

ports_of() { # SERVER
    case $1 in
        kafka) echo "${port[kafka]} ${port[controller]} ${port[sasl]}" ;;
        rocketmq*) echo "${port[$1]} $((port[$1] - 2)) ${port[${1/rocketmq/ha}]}" ;;
        *) echo "${port[$1]}" ;;
    esac
}

# --- configuration --------------------------------------------------------------------------------------------------

# The command to put before a tool's arguments. The * is for java, not for the shell that runs it: hence the quotes.
tool() { # PART CLASS [JAVA-OPTION...]
    echo "java -Xmx256m -Xlog:disable -XX:TieredStopAtLevel=1 -XX:+UseSerialGC -XX:-UsePerfData" \
        "-Djava.io.tmpdir=$dir/tmp" "${@:3}" \
        "-XX:SharedArchiveFile=\"$tools/java/$1.jsa\" -cp \"$tools/$1/*:$tools/java/tool.jar\" $2"
}

# What both nodes have in common. Between themselves they have no name: ANONYMOUS. Stock brokers remove messages by the
# time that they bear, after a week: those of years ago at the next look, which may be under a reader.
kafka_configuration() {
    cat <<END
controller.quorum.bootstrap.servers=127.0.0.1:${port[controller]}
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS;User:$admin
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
log.retention.ms=-1
END
}

# Stock brokers preallocate 1 GiB. They hand out 32 messages or 256 KiB a pull, and filter by tags alone, as all but the
# first do.
rocketmq_configuration() { # SERVER
    cat <<END
brokerClusterName=DefaultCluster
brokerName=${master[$1]}
brokerId=0
brokerIP1=127.0.0.1
bindAddress=127.0.0.1
listenPort=${port[$1]}
haListenPort=${port[${1/rocketmq/ha}]}
namesrvAddr=127.0.0.1:${port[namesrv]}
registerNameServerPeriod=10000
storePathRootDir=$dir/data/$1/store
brokerRole=ASYNC_MASTER
flushDiskType=ASYNC_FLUSH
autoCreateTopicEnable=true
autoCreateSubscriptionGroup=true
# A busy machine is no reason to refuse messages: stock is 200 ms.
waitTimeMillsInSendQueue=10000
mappedFileSizeCommitLog=67108864
diskMaxUsedSpaceRatio=95
END
    case $1 in
        rocketmq)
            cat <<END
enablePropertyFilter=true
maxTransferCountOnMessageInMemory=1024
maxTransferBytesOnMessageInMemory=4194304
maxTransferCountOnMessageInDisk=1024
maxTransferBytesOnMessageInDisk=4194304
END
            ;;
        rocketmq3)
            cat <<END
authenticationEnabled=true
authenticationMetadataProvider=org.apache.rocketmq.auth.authentication.provider.LocalAuthenticationMetadataProvider
initAuthenticationUser={"username":"$admin","password":"$admin_password"}
innerClientAuthenticationCredentials={"accessKey":"$admin","secretKey":"$admin_password"}
authorizationEnabled=true
authorizationMetadataProvider=org.apache.rocketmq.auth.authorization.provider.LocalAuthorizationMetadataProvider
END
            ;;
    esac
}

write_configuration() {
    local server
    mkdir -p "$dir"/{conf,data/{kafka,kafka2,rocketmq,rocketmq2,rocketmq3},data/s3/"$bucket",logs,pids,tmp}

    cat - <(kafka_configuration) >"$dir/conf/kafka.properties" <<END
process.roles=broker,controller
node.id=${node[kafka]}
listeners=PLAINTEXT://127.0.0.1:${port[kafka]},SASL_SSL://127.0.0.1:${port[sasl]},\
CONTROLLER://127.0.0.1:${port[controller]}
advertised.listeners=PLAINTEXT://127.0.0.1:${port[kafka]},SASL_SSL://127.0.0.1:${port[sasl]}
log.dirs=$dir/data/kafka
sasl.enabled.mechanisms=PLAIN
listener.name.sasl_ssl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \
    user_$admin="$admin_password" user_$guest="$guest_password";
ssl.keystore.type=PKCS12
ssl.keystore.location=$dir/conf/kafka.p12
ssl.keystore.password=$store_password
ssl.key.password=$store_password
END
    cat - <(kafka_configuration) >"$dir/conf/kafka2.properties" <<END
process.roles=broker
node.id=${node[kafka2]}
listeners=PLAINTEXT://127.0.0.1:${port[kafka2]}
advertised.listeners=PLAINTEXT://127.0.0.1:${port[kafka2]}
log.dirs=$dir/data/kafka2
END

    cat >"$dir/conf/namesrv.properties" <<END
listenPort=${port[namesrv]}
bindAddress=127.0.0.1
kvConfigPath=$dir/data/rocketmq/kv.json
configStorePath=$dir/data/rocketmq/namesrv.properties
END
    for server in "${!master[@]}"; do
        rocketmq_configuration "$server" >"$dir/conf/$server.properties"
    done

    # RocketMQ's own sets up two dozen files: that costs a second of every start.
    cat >"$dir/conf/logback.xml" <<'END'
<configuration>
    <appender name="stdout" class="ch.qos.logback.core.ConsoleAppender">
        <encoder><pattern>%d %-5level [%thread] %logger{0} - %msg%n</pattern></encoder>
    </appender>
    <root level="WARN"><appender-ref ref="stdout"/></root>
</configuration>
END

    kafka_tool=$(tool kafka KafkaTool)
    rocketmq_tool=$(tool rocketmq RocketmqTool "-Daccess-key=$admin" "-Dsecret-key=$admin_password")
    cat >"$dir/env" <<END
export MILLSTREAM_TEST_KAFKA=127.0.0.1:${port[kafka]}
export MILLSTREAM_TEST_KAFKA_SASL=127.0.0.1:${port[sasl]}
export MILLSTREAM_TEST_KAFKA_CA='$dir/conf/kafka.pem'
export MILLSTREAM_TEST_KAFKA_ADMIN=$admin
export MILLSTREAM_TEST_KAFKA_ADMIN_PASSWORD=$admin_password
export MILLSTREAM_TEST_KAFKA_GUEST=$guest
export MILLSTREAM_TEST_KAFKA_GUEST_PASSWORD=$guest_password
export MILLSTREAM_TEST_ROCKETMQ=127.0.0.1:${port[namesrv]}
export MILLSTREAM_TEST_ROCKETMQ_ADMIN=$admin
export MILLSTREAM_TEST_ROCKETMQ_ADMIN_PASSWORD=$admin_password
export MILLSTREAM_TEST_S3=http://127.0.0.1:${port[s3]}
export MILLSTREAM_TEST_S3_KEY=$s3_key
export MILLSTREAM_TEST_S3_SECRET=$s3_secret
export MILLSTREAM_TEST_S3_BUCKET=$bucket
export MILLSTREAM_TEST_BROKERS_DIR='$dir'
export MILLSTREAM_TEST_KAFKA_TOOL='$kafka_tool'
export MILLSTREAM_TEST_ROCKETMQ_TOOL='$rocketmq_tool'
END
}

# --- processes ------------------------------------------------------------------------------------------------------

# What only this directory's server has on its command line.
mark() { # SERVER
    case $1 in
        s3) echo "$dir/data/s3" ;;
        *) echo "$dir/conf/$1.properties" ;;
    esac
}

# All of a process, with its ports and locks: they outlive the first thread of a killed JVM. A process that only waits
# for its parent to look has ended, too.
gone() { # PID
    local threads=("/proc/$1/task/"*) stat
    [[ ${#threads[@]} -eq 1 ]] || return 1
    read -r stat 2>/dev/null <"/proc/$1/stat" || return 0
    [[ ${stat##*) } == [ZX]* ]]
}

# The recorded process, if it is still that server: a pid may have gone to somebody else since.
pid_of() { # SERVER
    local pid argument arguments mark
    [[ -f $dir/pids/$1 ]] || return 1
    pid=$(<"$dir/pids/$1")
    mark=$(mark "$1")
    for _ in {1..50}; do
        mapfile -t -d '' arguments 2>/dev/null <"/proc/$pid/cmdline" || return 1
        for argument in ${arguments[@]+"${arguments[@]}"}; do
            # The 0 counts: in an EXIT trap, a bare return gives the status that the script ends with.
            [[ $argument != "$mark" ]] || { echo "$pid"; return 0; }
        done
        # None at all: it has ended, or it is just becoming another program.
        ((${#arguments[@]} == 0)) && ! gone "$pid" || return 1
        sleep 0.02
    done
    return 1
}

running() { pid_of "$1" >/dev/null; }

# A session of its own: a Ctrl-C meant for the command that uses the servers does not reach them.
launch() { # SERVER COMMAND...
    local server=$1
    shift
    setsid "$@" </dev/null >>"$dir/logs/$server.log" 2>&1 &
    echo $! >"$dir/pids/$server"
    disown
    # Until it is no more a copy of this shell.
    for _ in {1..100}; do
        ! running "$server" || return 0
        sleep 0.02
    done
    complain "$server" "did not start"
}

# java_server SERVER HEAP ARGUMENTS...
java_server() {
    launch "$1" env "ROCKETMQ_HOME=$dir" java "-Xmx$2" "${java_opts[@]}" -XX:-UsePerfData "-Duser.home=$dir" \
        "-Djava.io.tmpdir=$dir/tmp" "${@:3}"
}

rocketmq_server() { # SERVER HEAP ARGUMENTS...
    java_server "$1" "$2" "-Drmq.logback.configurationFile=$dir/conf/logback.xml" \
        --add-opens java.base/java.nio=ALL-UNNAMED --add-opens java.base/sun.nio.ch=ALL-UNNAMED \
        -cp "$tools/rocketmq/*" "${@:3}"
}

# A key and a certificate for 127.0.0.1, once; the certificate vouches for itself.
certify() {
    local store=$dir/conf/kafka.p12 certificate=$dir/conf/kafka.pem
    local -a keytool=(keytool -J-XX:TieredStopAtLevel=1 -J-XX:+UseSerialGC)
    [[ ! -f $certificate ]] || return 0
    rm -f "$store"
    "${keytool[@]}" -genkeypair -alias kafka -keyalg EC -groupname secp256r1 -validity 3650 -dname CN=localhost \
        -ext san=ip:127.0.0.1,dns:localhost -keystore "$store" -storetype PKCS12 -storepass "$store_password" &&
        "${keytool[@]}" -exportcert -rfc -alias kafka -keystore "$store" -storepass "$store_password" \
            -file "$certificate.new" &&
        mv "$certificate.new" "$certificate"
}

format_kafka() { # SERVER CLUSTER-ID OPTION
    java -Xmx128m "${java_opts[@]}" -cp "$tools/kafka/*" kafka.tools.StorageTool format "$3" -t "$2" \
        -c "$dir/conf/$1.properties" >"$dir/logs/$1.log" 2>&1 || complain "$1" "could not be formatted"
}

launch_server() { # SERVER
    local number cluster certifying config=$dir/conf/$1.properties
    for number in $(ports_of "$1"); do
        ! listening "$number" || sleep 1 # the one before, killed by others, may still be ending
        ! listening "$number" || die "port $number, for $1, is taken by another process"
    done
    case $1 in
        namesrv) rocketmq_server namesrv 128m org.apache.rocketmq.namesrv.NamesrvStartup -c "$config" ;;
        rocketmq*)
            # Stock brokers drop messages of a disk that is 85 % full, and take none at 90 %.
            rocketmq_server "$1" 384m -Xms384m -XX:MaxDirectMemorySize=256m \
                -Drocketmq.broker.diskSpaceCleanForciblyRatio=0.97 \
                -Drocketmq.broker.diskSpaceWarningLevelRatio=0.98 \
                org.apache.rocketmq.broker.BrokerStartup -c "$config"
            ;;
        kafka)
            # Beside the formatting, it costs no time.
            certify >"$dir/logs/keytool.log" 2>&1 &
            certifying=$!
            if [[ ! -f $dir/data/kafka/meta.properties ]]; then
                cluster=$(head -c 16 /dev/urandom | base64 | tr '+/' AB | tr -d =)
                format_kafka kafka "$cluster" --standalone
            fi
            wait "$certifying" || complain keytool "made no certificate"
            java_server kafka 512m -cp "$tools/kafka/*" kafka.Kafka "$config"
            ;;
        kafka2)
            if [[ ! -f $dir/data/kafka2/meta.properties ]]; then
                cluster=$(sed -n 's/^cluster\.id=//p' "$dir/data/kafka/meta.properties")
                format_kafka kafka2 "$cluster" --no-initial-controllers
            fi
            java_server kafka2 512m -cp "$tools/kafka/*" kafka.Kafka "$config"
            ;;
        s3)
            # Never --sidecar, which loses updates. Without --disableotmp, listings show ghosts.
            launch s3 "$tools/versitygw/versitygw" --port "127.0.0.1:${port[s3]}" --access "$s3_key" \
                --secret "$s3_secret" --region us-east-1 --keep-alive --quiet --health /healthz \
                posix --disableotmp "$dir/data/s3"
            ;;
        *) usage ;;
    esac
}

complain() { # SERVER WHAT
    tail -n 20 "$dir/logs/$1.log" >&2 || true
    die "$1 $2 (the end of $dir/logs/$1.log is above)"
}

s3_healthy() {
    local status
    {
        printf 'GET /healthz HTTP/1.0\r\n\r\n' >&3
        read -r -t 2 status <&3
    } 2>/dev/null 3<>"/dev/tcp/127.0.0.1/${port[s3]}" && [[ $status == *" 200 "* ]]
}

answers() { # SERVER
    if [[ $1 == s3 ]]; then s3_healthy; else listening "${port[$1]}"; fi
}

# Until it serves, which is later than its port: Kafka has left its fence, the name server knows the RocketMQ broker.
# Of two the first knows of the second.
# The ports are watched from here and only then is a JVM spent: it does all the rest of the waiting.
await() { # SERVER
    local deadline=$((SECONDS + patience)) waiter
    until answers "$1"; do
        running "$1" || complain "$1" "ended while it started"
        ((SECONDS < deadline)) || complain "$1" "did not open its port in $patience s"
        sleep 0.1
    done
    case $1 in
        kafka*) eval "exec $kafka_tool wait 127.0.0.1:${port[kafka]} $patience ${node[$1]}" >/dev/null & ;;
        rocketmq*) eval "exec $rocketmq_tool wait 127.0.0.1:${port[namesrv]} $patience ${master[$1]}" >/dev/null & ;;
        *) return 0 ;;
    esac
    waiter=$!
    while kill -0 "$waiter" 2>/dev/null; do
        running "$1" || { kill "$waiter"; complain "$1" "ended while it started"; }
        sleep 0.05
    done
    wait "$waiter" || complain "$1" "does not serve"
}

# Ends servers; all are told before any is waited for.
end() { # TERM|KILL SERVER...
    local signal=$1 deadline=$((SECONDS + grace)) server
    local -A pids=()
    shift
    for server in "$@"; do
        ! pids[$server]=$(pid_of "$server") || kill "-$signal" "${pids[$server]}" 2>/dev/null || true
    done
    for server in "$@"; do
        until [[ ! ${pids[$server]} ]] || gone "${pids[$server]}"; do
            ((SECONDS < deadline + grace)) || die "$server, process ${pids[$server]}, does not end"
            ((SECONDS < deadline)) || ! running "$server" || kill -KILL "${pids[$server]}" 2>/dev/null || true
            sleep 0.05
        done
        rm -f "$dir/pids/$server"
    done
}

# --- commands -------------------------------------------------------------------------------------------------------

up() { # --fixed-ports|""
    local part server started=()
    for part in kafka rocketmq versitygw java; do
        [[ -f $tools/$part/.stamp ]] || die "no servers to start: run scripts/setup.sh test first"
    done
    choose_ports "$1"
    load_ports
    write_configuration
    # Half a set is of no use.
    trap '(($? == 0)) || end KILL "${servers[@]}"' EXIT
    for server in "${servers[@]}"; do
        running "$server" || { launch_server "$server"; started+=("$server"); }
    done
    for server in ${started[@]+"${started[@]}"}; do await "$server"; done
    trap - EXIT
}

start() { # SERVER
    local broker
    write_configuration
    running "$1" && return 0
    launch_server "$1"
    await "$1"
    [[ $1 == namesrv ]] || return 0
    # A new name server knows no broker until the next of its ten-second calls.
    for broker in "${!master[@]}"; do
        ! running "$broker" || await "$broker"
    done
}

run() { # COMMAND...
    # shellcheck source=/dev/null
    . "$dir/env"
    exec "$@"
}

with() { # COMMAND...
    local child
    up ""
    trap 'end KILL "${servers[@]}" "${extras[@]}"' EXIT
    # In the background, because a shell that waits for a foreground command hears no signal; with stdin and with
    # Ctrl-C, which background commands are otherwise denied.
    run env --default-signal=INT,QUIT "$@" <&0 &
    child=$!
    trap 'kill -INT "$child" 2>/dev/null || true; wait "$child" || true; exit 130' INT
    trap 'kill -TERM "$child" 2>/dev/null || true; wait "$child" || true; exit 143' TERM
    wait "$child"
}

# An interrupted script still passes its EXIT traps.
trap 'exit 130' INT
trap 'exit 143' TERM

(($# >= 2)) || usage
command=$1
declare -A port=()
case $command in
    up | with) mkdir -p "$2" ;;
    down) [[ -d $2 ]] || exit 0 ;;
    *) [[ -d $2 ]] || die "no directory $2" ;;
esac
dir=$(cd "$2" && pwd -P)
shift 2
# The configuration files and DIR/env have no way to say these.
[[ $dir != *[[:space:]\'\"\\]* ]] || die "spaces and quotes in the directory's name will not do: $dir"

case $command in
    up)
        [[ $# -eq 0 || $* == --fixed-ports ]] || usage
        up "${1:-}"
        ;;
    down)
        [[ $# -eq 0 || $* == --now ]] || usage
        signal=TERM
        [[ ! ${1:-} ]] || signal=KILL
        # A second node leaves by the controller, which is the first.
        end "$signal" "${extras[@]}"
        end "$signal" "${servers[@]}"
        ;;
    stop | start | restart)
        [[ " ${servers[*]} ${extras[*]} " == *" ${1:-} "* ]] || usage
        [[ $# -eq 1 || ($command != start && $# -eq 2 && $2 == --kill) ]] || usage
        load_ports
        if [[ $command != start ]]; then
            if [[ ${2:-} ]]; then end KILL "$1"; else end TERM "$1"; fi
        fi
        if [[ $command != stop ]]; then start "$1"; fi
        ;;
    env)
        cat "$dir/env"
        ;;
    run | with)
        [[ ${1:-} == -- && $# -gt 1 ]] || usage
        shift
        "$command" "$@"
        ;;
    *) usage ;;
esac
