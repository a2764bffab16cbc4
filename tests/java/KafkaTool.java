import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Properties;
import java.util.TreeMap;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicReference;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.ConfigEntry;
import org.apache.kafka.clients.admin.ListOffsetsOptions;
import org.apache.kafka.clients.admin.ListTopicsOptions;
import org.apache.kafka.clients.admin.NewPartitionReassignment;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.admin.OffsetSpec;
import org.apache.kafka.clients.admin.TopicDescription;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.IsolationLevel;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.TopicPartitionInfo;
import org.apache.kafka.common.acl.AccessControlEntry;
import org.apache.kafka.common.acl.AclBinding;
import org.apache.kafka.common.acl.AclOperation;
import org.apache.kafka.common.acl.AclPermissionType;
import org.apache.kafka.common.config.ConfigResource;
import org.apache.kafka.common.errors.TopicExistsException;
import org.apache.kafka.common.errors.UnknownTopicOrPartitionException;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.resource.PatternType;
import org.apache.kafka.common.resource.ResourcePattern;
import org.apache.kafka.common.resource.ResourceType;
import org.apache.kafka.common.serialization.StringDeserializer;
import org.apache.kafka.common.serialization.StringSerializer;

/**
 * Reads and writes Kafka with its own Java client: for the tests an opinion that does not come from the client under
 * test. Answers go to stdout, one JSON object or one word a line; an error goes to stderr and ends with status 1.
 */
public final class KafkaTool {
    static {
        // Before the first logger: the default would print errors on stdout, among the answers.
        System.setProperty("log4j2.level", "OFF");
    }

    private static final String USAGE = String.join("\n",
            "usage: KafkaTool wait BOOTSTRAP [SECONDS [NODE]]",
            "       KafkaTool create BOOTSTRAP TOPIC PARTITIONS [CONFIG=VALUE...]",
            "       KafkaTool delete BOOTSTRAP TOPIC",
            "       KafkaTool produce BOOTSTRAP TOPIC [CONFIG=VALUE...]",
            "       KafkaTool produce-tx BOOTSTRAP TOPIC TXID commit|abort|hang [CONFIG=VALUE...]",
            "       KafkaTool consume BOOTSTRAP TOPIC [CONFIG=VALUE...]",
            "       KafkaTool ends BOOTSTRAP TOPIC",
            "       KafkaTool move BOOTSTRAP TOPIC NODE",
            "       KafkaTool allow BOOTSTRAP USER OPERATION topic|group|txn NAME",
            "       KafkaTool commit BOOTSTRAP GROUP TOPIC PARTITION=OFFSET...",
            "       KafkaTool group BOOTSTRAP GROUP",
            "       KafkaTool members BOOTSTRAP GROUP",
            "       KafkaTool join BOOTSTRAP GROUP TOPIC",
            "       KafkaTool settings BOOTSTRAP TOPIC",
            "produce and produce-tx read lines of PARTITION<tab>KEY<tab>VALUE: without a partition the client chooses,",
            "an empty key is null, and a line that ends after the key has a null value. join is a member of the group,",
            "from when it says READY until stdin ends.");

    private static final ObjectMapper JSON = new ObjectMapper();
    private static final PrintStream OUT = new PrintStream(System.out, false, StandardCharsets.UTF_8);

    public static void main(String[] args) {
        int status = 0;
        try {
            run(args);
        } catch (ArrayIndexOutOfBoundsException e) {
            System.err.println("an argument or a field is missing");
            System.err.println(USAGE);
            status = 2;
        } catch (IllegalArgumentException e) {
            System.err.println(e.getMessage());
            System.err.println(USAGE);
            status = 2;
        } catch (Exception e) {
            System.err.println(e instanceof ExecutionException ? e.getCause() : e);
            status = 1;
        }
        OUT.flush();
        System.exit(status);
    }

    private static void run(String[] args) throws Exception {
        String bootstrap = args[1];
        switch (args[0]) {
            case "wait" -> await(bootstrap, args.length > 2 ? Integer.parseInt(args[2]) : 120,
                    args.length > 3 ? Integer.parseInt(args[3]) : 1);
            case "create" -> create(bootstrap, args[2], Integer.parseInt(args[3]), options(args, 4));
            case "delete" -> delete(bootstrap, args[2]);
            case "produce" -> produce(bootstrap, args[2], options(args, 3));
            case "produce-tx" -> produceTx(bootstrap, args[2], args[3], args[4], options(args, 5));
            case "consume" -> consume(bootstrap, args[2], options(args, 3));
            case "ends" -> ends(bootstrap, args[2]);
            case "move" -> move(bootstrap, args[2], Integer.parseInt(args[3]));
            case "allow" -> allow(bootstrap, args[2], args[3], args[4], args[5]);
            case "commit" -> commit(bootstrap, args[2], args[3], options(args, 4));
            case "group" -> group(bootstrap, args[2]);
            case "members" -> members(bootstrap, args[2]);
            case "join" -> join(bootstrap, args[2], args[3]);
            case "settings" -> settings(bootstrap, args[2]);
            default -> throw new IllegalArgumentException("unknown command " + args[0]);
        }
    }

    private static Map<String, String> options(String[] args, int from) {
        Map<String, String> options = new HashMap<>();
        for (int i = from; i < args.length; i++) {
            int equals = args[i].indexOf('=');
            if (equals < 0) {
                throw new IllegalArgumentException("not CONFIG=VALUE: " + args[i]);
            }
            options.put(args[i].substring(0, equals), args[i].substring(equals + 1));
        }
        return options;
    }

    private static Properties properties(String bootstrap, Map<String, String> options) {
        Properties properties = new Properties();
        properties.put("bootstrap.servers", bootstrap);
        properties.putAll(options);
        return properties;
    }

    private static Admin admin(String bootstrap) {
        return Admin.create(properties(bootstrap, Map.of("default.api.timeout.ms", "30000")));
    }

    /** Until the node serves: it has left its fence, and every partition has a leader again after a restart. */
    private static void await(String bootstrap, int seconds, int node) throws Exception {
        long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(seconds);
        Map<String, String> impatient = Map.of("default.api.timeout.ms", "2000", "request.timeout.ms", "1000",
                "reconnect.backoff.ms", "100", "reconnect.backoff.max.ms", "200");
        try (Admin admin = Admin.create(properties(bootstrap, impatient))) {
            String why = "no node " + node;
            while (System.nanoTime() < deadline) {
                try {
                    if (admin.describeCluster().nodes().get().stream().anyMatch(n -> n.id() == node)) {
                        why = "a partition without a leader";
                        var topics = admin.listTopics(new ListTopicsOptions().listInternal(true)).names().get();
                        var descriptions = admin.describeTopics(topics).allTopicNames().get().values();
                        if (descriptions.stream().allMatch(KafkaTool::hasLeaders)) {
                            OUT.println("ready");
                            return;
                        }
                    }
                } catch (ExecutionException e) {
                    why = e.getCause().toString();
                }
                Thread.sleep(100);
            }
            throw new Exception("not ready after " + seconds + " s: " + why);
        }
    }

    /** Until it is so, but not for ever; then says it. */
    private static void until(String done, Callable<Boolean> isSo) throws Exception {
        long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(120);
        while (!isSo.call()) {
            if (System.nanoTime() > deadline) {
                throw new Exception("not " + done + " after 120 s");
            }
            Thread.sleep(20);
        }
        OUT.println(done);
    }

    private static boolean hasLeaders(TopicDescription topic) {
        return topic.partitions().stream().map(TopicPartitionInfo::leader).allMatch(l -> l != null && !l.isEmpty());
    }

    private static void create(String bootstrap, String topic, int partitions, Map<String, String> configs)
            throws Exception {
        try (Admin admin = admin(bootstrap)) {
            try {
                admin.createTopics(List.of(new NewTopic(topic, partitions, (short) 1).configs(configs))).all().get();
            } catch (ExecutionException e) {
                if (!(e.getCause() instanceof TopicExistsException)) {
                    throw e;
                }
                OUT.println("exists");
                return;
            }
            // The controller has made it; a client can use it when the broker's metadata shows all of it.
            until("created", () -> {
                try {
                    TopicDescription seen = admin.describeTopics(List.of(topic)).allTopicNames().get().get(topic);
                    return seen.partitions().size() == partitions && hasLeaders(seen);
                } catch (ExecutionException e) {
                    if (e.getCause() instanceof UnknownTopicOrPartitionException) {
                        return false;
                    }
                    throw e;
                }
            });
        }
    }

    private static void delete(String bootstrap, String topic) throws Exception {
        try (Admin admin = admin(bootstrap)) {
            try {
                admin.deleteTopics(List.of(topic)).all().get();
            } catch (ExecutionException e) {
                if (!(e.getCause() instanceof UnknownTopicOrPartitionException)) {
                    throw e;
                }
                OUT.println("absent");
                return;
            }
            until("deleted", () -> !admin.listTopics().names().get().contains(topic));
        }
    }

    private static KafkaProducer<String, String> producer(String bootstrap, Map<String, String> options) {
        Properties properties = properties(bootstrap, Map.of("acks", "all", "linger.ms", "5"));
        properties.putAll(options);
        return new KafkaProducer<>(properties, new StringSerializer(), new StringSerializer());
    }

    private static void produce(String bootstrap, String topic, Map<String, String> options) throws Exception {
        try (var producer = producer(bootstrap, options)) {
            OUT.println("{\"sent\":" + send(producer, topic) + "}");
        }
    }

    private static void produceTx(String bootstrap, String topic, String id, String end, Map<String, String> options)
            throws Exception {
        if (!List.of("commit", "abort", "hang").contains(end)) {
            throw new IllegalArgumentException("not commit, abort or hang: " + end);
        }
        options.put("transactional.id", id);
        try (var producer = producer(bootstrap, options)) {
            producer.initTransactions();
            producer.beginTransaction();
            long sent = send(producer, topic);
            switch (end) {
                case "commit" -> producer.commitTransaction();
                case "abort" -> producer.abortTransaction();
                default -> {
                    // Whoever started this kills it: closing in order would abort.
                    OUT.println("READY");
                    OUT.flush();
                    Thread.sleep(Long.MAX_VALUE);
                }
            }
            OUT.println("{\"sent\":" + sent + "}");
        }
    }

    /** Sends the lines of stdin and returns their number once the broker has acknowledged all. */
    private static long send(KafkaProducer<String, String> producer, String topic) throws Exception {
        var failure = new AtomicReference<Exception>();
        var in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        long sent = 0;
        for (String line; (line = in.readLine()) != null; sent++) {
            String[] fields = line.split("\t", 3);
            Integer partition = fields[0].isEmpty() ? null : Integer.valueOf(fields[0]);
            String key = fields[1].isEmpty() ? null : fields[1];
            String value = fields.length < 3 ? null : fields[2];
            producer.send(new ProducerRecord<>(topic, partition, key, value), (metadata, e) -> {
                if (e != null) {
                    failure.compareAndSet(null, e);
                }
            });
        }
        producer.flush();
        if (failure.get() != null) {
            throw failure.get();
        }
        return sent;
    }

    /** Everything from the beginning to what is the end now; for read_committed that is the last stable offset. */
    private static void consume(String bootstrap, String topic, Map<String, String> options) throws Exception {
        Properties properties = properties(bootstrap, Map.of("isolation.level", "read_committed"));
        properties.putAll(options);
        try (var consumer = new KafkaConsumer<>(properties, new StringDeserializer(), new StringDeserializer())) {
            var partitions = partitions(bootstrap, topic);
            settle(bootstrap, partitions);
            consumer.assign(partitions);
            consumer.seekToBeginning(partitions);
            var ends = consumer.endOffsets(partitions);
            // By position, not by count: markers and aborted rows take offsets and are never seen.
            while (partitions.stream().anyMatch(p -> consumer.position(p) < ends.get(p))) {
                for (var record : consumer.poll(Duration.ofMillis(200))) {
                    if (record.offset() < ends.get(new TopicPartition(topic, record.partition()))) {
                        print(record);
                    }
                }
            }
        }
    }

    /** The markers of a transaction are written after its commit returns: waits for them, but not for ever. */
    private static void settle(String bootstrap, List<TopicPartition> partitions) throws Exception {
        try (Admin admin = admin(bootstrap)) {
            for (int tries = 0; tries < 600; tries++) {
                var stable = offsets(admin, partitions, OffsetSpec.latest(), IsolationLevel.READ_COMMITTED);
                if (stable.equals(offsets(admin, partitions, OffsetSpec.latest(), IsolationLevel.READ_UNCOMMITTED))) {
                    return;
                }
                Thread.sleep(50);
            }
        }
    }

    private static void print(ConsumerRecord<String, String> record) throws Exception {
        Map<String, String> headers = new LinkedHashMap<>();
        for (Header header : record.headers()) {
            byte[] value = header.value();
            headers.put(header.key(), value == null ? null : new String(value, StandardCharsets.UTF_8));
        }
        Map<String, Object> row = new LinkedHashMap<>();
        row.put("partition", record.partition());
        row.put("offset", record.offset());
        row.put("timestamp", record.timestamp());
        row.put("key", record.key());
        row.put("value", record.value());
        row.put("headers", headers);
        OUT.println(JSON.writeValueAsString(row));
    }

    private static List<TopicPartition> partitions(String bootstrap, String topic) throws Exception {
        try (Admin admin = admin(bootstrap)) {
            return admin.describeTopics(List.of(topic)).allTopicNames().get().get(topic).partitions().stream()
                    .map(p -> new TopicPartition(topic, p.partition())).toList();
        }
    }

    private static void ends(String bootstrap, String topic) throws Exception {
        var partitions = partitions(bootstrap, topic);
        try (Admin admin = admin(bootstrap)) {
            var begin = offsets(admin, partitions, OffsetSpec.earliest(), IsolationLevel.READ_UNCOMMITTED);
            var stable = offsets(admin, partitions, OffsetSpec.latest(), IsolationLevel.READ_COMMITTED);
            var end = offsets(admin, partitions, OffsetSpec.latest(), IsolationLevel.READ_UNCOMMITTED);
            for (int partition : begin.keySet()) {
                OUT.printf("{\"partition\":%d,\"begin\":%d,\"stable\":%d,\"end\":%d}%n", partition,
                        begin.get(partition), stable.get(partition), end.get(partition));
            }
        }
    }

    /** Moves a topic, all of it, to one node; returns when it leads every partition, and no other has any. */
    private static void move(String bootstrap, String topic, int node) throws Exception {
        var there = Optional.of(new NewPartitionReassignment(List.of(node)));
        Map<TopicPartition, Optional<NewPartitionReassignment>> moves = new HashMap<>();
        partitions(bootstrap, topic).forEach(p -> moves.put(p, there));
        try (Admin admin = admin(bootstrap)) {
            admin.alterPartitionReassignments(moves).all().get();
            until("moved", () -> admin.describeTopics(List.of(topic)).allTopicNames().get().get(topic).partitions()
                    .stream().allMatch(p -> p.leader() != null && p.leader().id() == node && p.replicas().size() == 1));
        }
    }

    /** Adds to the access lists; returns when the broker has it in its own. */
    private static void allow(String bootstrap, String user, String operation, String type, String name)
            throws Exception {
        ResourceType resource = switch (type) {
            case "topic" -> ResourceType.TOPIC;
            case "group" -> ResourceType.GROUP;
            case "txn" -> ResourceType.TRANSACTIONAL_ID;
            default -> throw new IllegalArgumentException("not topic, group or txn: " + type);
        };
        var allowed = new AclBinding(new ResourcePattern(resource, name, PatternType.LITERAL), new AccessControlEntry(
                "User:" + user, "*", AclOperation.valueOf(operation), AclPermissionType.ALLOW));
        try (Admin admin = admin(bootstrap)) {
            admin.createAcls(List.of(allowed)).all().get();
            until("allowed", () -> !admin.describeAcls(allowed.toFilter()).values().get().isEmpty());
        }
    }

    /** Commits the next offsets of a group, as a consumer of it does that has read up to there. */
    private static void commit(String bootstrap, String group, String topic, Map<String, String> offsets) {
        Map<TopicPartition, OffsetAndMetadata> next = new HashMap<>();
        offsets.forEach((partition, offset) -> next.put(new TopicPartition(topic, Integer.parseInt(partition)),
                new OffsetAndMetadata(Long.parseLong(offset))));
        Properties properties = properties(bootstrap, Map.of("group.id", group, "enable.auto.commit", "false"));
        try (var consumer = new KafkaConsumer<>(properties, new StringDeserializer(), new StringDeserializer())) {
            consumer.assign(next.keySet());
            consumer.commitSync(next);
        }
        OUT.println("committed");
    }

    /** The next offsets of a group, as the broker has them. */
    private static void group(String bootstrap, String group) throws Exception {
        try (Admin admin = admin(bootstrap)) {
            admin.listConsumerGroupOffsets(group).partitionsToOffsetAndMetadata().get()
                    .forEach((partition, next) -> OUT.printf("{\"topic\":\"%s\",\"partition\":%d,\"offset\":%d}%n",
                            partition.topic(), partition.partition(), next.offset()));
        }
    }

    /** The state of a group, and who is in it. */
    private static void members(String bootstrap, String group) throws Exception {
        try (Admin admin = admin(bootstrap)) {
            var found = admin.describeConsumerGroups(List.of(group)).all().get().get(group);
            OUT.printf("{\"state\":\"%s\"}%n", found.groupState());
            for (var member : found.members()) {
                OUT.println(JSON.writeValueAsString(Map.of("member", member.consumerId(), "client", member.clientId(),
                        "host", member.host())));
            }
        }
    }

    /** Is a member of a group that reads this topic, until stdin ends. */
    private static void join(String bootstrap, String group, String topic) throws Exception {
        Properties properties = properties(bootstrap, Map.of("group.id", group, "enable.auto.commit", "false"));
        try (var consumer = new KafkaConsumer<>(properties, new StringDeserializer(), new StringDeserializer())) {
            consumer.subscribe(List.of(topic));
            while (consumer.assignment().isEmpty()) {
                consumer.poll(Duration.ofMillis(100));
            }
            OUT.println("READY");
            OUT.flush();
            System.in.read();
        }
    }

    /** What was set on a topic itself. */
    private static void settings(String bootstrap, String topic) throws Exception {
        var resource = new ConfigResource(ConfigResource.Type.TOPIC, topic);
        try (Admin admin = admin(bootstrap)) {
            for (var entry : admin.describeConfigs(List.of(resource)).all().get().get(resource).entries()) {
                if (entry.source() == ConfigEntry.ConfigSource.DYNAMIC_TOPIC_CONFIG) {
                    OUT.println(JSON.writeValueAsString(Map.of("name", entry.name(), "value", entry.value())));
                }
            }
        }
    }

    private static Map<Integer, Long> offsets(Admin admin, List<TopicPartition> partitions, OffsetSpec spec,
            IsolationLevel isolation) throws Exception {
        Map<TopicPartition, OffsetSpec> wanted = new HashMap<>();
        partitions.forEach(p -> wanted.put(p, spec));
        Map<Integer, Long> offsets = new TreeMap<>();
        admin.listOffsets(wanted, new ListOffsetsOptions(isolation)).all().get()
                .forEach((partition, info) -> offsets.put(partition.partition(), info.offset()));
        return offsets;
    }
}
