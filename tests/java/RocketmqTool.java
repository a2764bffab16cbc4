import com.alibaba.fastjson2.JSON;
import com.alibaba.fastjson2.JSONWriter;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.Charset;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Collection;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.concurrent.TimeUnit;
import org.apache.rocketmq.acl.common.AclClientRPCHook;
import org.apache.rocketmq.acl.common.SessionCredentials;
import org.apache.rocketmq.client.consumer.DefaultMQPullConsumer;
import org.apache.rocketmq.client.consumer.PullResult;
import org.apache.rocketmq.client.exception.MQBrokerException;
import org.apache.rocketmq.client.exception.MQClientException;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.client.producer.SendStatus;
import org.apache.rocketmq.common.MQVersion;
import org.apache.rocketmq.common.TopicConfig;
import org.apache.rocketmq.common.compression.CompressionType;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;
import org.apache.rocketmq.common.message.MessageQueue;
import org.apache.rocketmq.remoting.RPCHook;
import org.apache.rocketmq.remoting.exception.RemotingException;
import org.apache.rocketmq.remoting.protocol.ResponseCode;
import org.apache.rocketmq.remoting.protocol.body.Connection;
import org.apache.rocketmq.remoting.protocol.route.BrokerData;
import org.apache.rocketmq.remoting.protocol.subscription.SubscriptionGroupConfig;
import org.apache.rocketmq.tools.admin.DefaultMQAdminExt;

/**
 * Reads and writes RocketMQ with its own Java client: for the tests an opinion that does not come from the client under
 * test. Answers go to stdout, one JSON object or one word a line; an error goes to stderr and ends with status 1.
 */
@SuppressWarnings("deprecation") // DefaultMQPullConsumer: the one that reads exactly the offsets it is told
public final class RocketmqTool {
    private static final String USAGE = String.join("\n",
            "usage: RocketmqTool wait NAMESRV [SECONDS [BROKER]]",
            "       RocketmqTool create NAMESRV TOPIC[@BROKER] QUEUES [ATTRIBUTE=VALUE...]",
            "       RocketmqTool delete NAMESRV TOPIC",
            "       RocketmqTool produce NAMESRV TOPIC [--compress zlib|zstd|lz4 | --batch N] [--property K=V]...",
            "                            [--charset NAME]",
            "       RocketmqTool consume NAMESRV TOPIC",
            "       RocketmqTool ends NAMESRV TOPIC",
            "       RocketmqTool expire NAMESRV BROKER",
            "       RocketmqTool commit NAMESRV TOPIC GROUP QUEUE=OFFSET...",
            "       RocketmqTool progress NAMESRV TOPIC GROUP",
            "       RocketmqTool topics NAMESRV",
            "       RocketmqTool settings NAMESRV TOPIC",
            "       RocketmqTool groups NAMESRV",
            "       RocketmqTool members NAMESRV GROUP",
            "       RocketmqTool join NAMESRV GROUP TOPIC",
            "       RocketmqTool user NAMESRV BROKER NAME SECRET",
            "       RocketmqTool allow NAMESRV BROKER USER RESOURCE ACTION...",
            "produce reads lines of QUEUE<tab>TAGS<tab>KEYS<tab>BODY; empty tags and keys are left out. Where several",
            "brokers have the topic, the queue is BROKER:QUEUE. Bodies are UTF-8, unless a charset says otherwise.",
            "join is a member of the group, from when it says READY until stdin ends, and consumes nothing.",
            "user makes a user of a broker that asks who it is; allow says all that one may do with a resource:",
            "Topic:NAME, or Group:PREFIX*. The system properties access-key and secret-key say who asks.");

    private static final String CLUSTER = "DefaultCluster";
    private static final String GROUP = "millstream-tool";
    /** What signs requests; brokers that do not ask who it is do not look. */
    private static final RPCHook SIGNATURE = signature(System.getProperty("access-key"));
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
            System.err.println(e);
            status = 1;
        }
        OUT.flush();
        // The client's threads are not daemons, and ending them in order takes seconds.
        System.exit(status);
    }

    private static void run(String[] args) throws Exception {
        String namesrv = args[1];
        switch (args[0]) {
            case "wait" -> await(namesrv, args.length > 2 ? Integer.parseInt(args[2]) : 120,
                    args.length > 3 ? args[3] : "broker-a");
            case "create" -> create(namesrv, args[2], Integer.parseInt(args[3]), args);
            case "delete" -> delete(namesrv, args[2]);
            case "produce" -> produce(namesrv, args[2], args);
            case "consume" -> consume(namesrv, args[2]);
            case "ends" -> ends(namesrv, args[2]);
            case "expire" -> expire(namesrv, args[2]);
            case "commit" -> commit(namesrv, args[2], args[3], args);
            case "progress" -> progress(namesrv, args[2], args[3]);
            case "topics" -> new TreeSet<>(admin(namesrv).fetchAllTopicList().getTopicList()).forEach(OUT::println);
            case "settings" -> settings(namesrv, args[2]);
            case "groups" -> groups(namesrv);
            case "members" -> members(namesrv, args[2]);
            case "join" -> join(namesrv, args[2], args[3]);
            case "user" -> user(namesrv, args[2], args[3], args[4]);
            case "allow" -> allow(namesrv, args[2], args[3], args[4], List.of(args).subList(5, args.length));
            default -> throw new IllegalArgumentException("unknown command " + args[0]);
        }
    }

    private static RPCHook signature(String key) {
        return key == null ? null
                : new AclClientRPCHook(new SessionCredentials(key, System.getProperty("secret-key")));
    }

    private static DefaultMQAdminExt admin(String namesrv) throws MQClientException {
        DefaultMQAdminExt admin = new DefaultMQAdminExt(SIGNATURE, 10_000);
        admin.setNamesrvAddr(namesrv);
        admin.setAdminExtGroup(GROUP + "-admin");
        admin.start();
        return admin;
    }

    private static Collection<BrokerData> brokers(DefaultMQAdminExt admin) throws Exception {
        return admin.examineBrokerClusterInfo().getBrokerAddrTable().values();
    }

    /** Until the name server knows the broker and that broker answers: its port is open seconds before. */
    private static void await(String namesrv, int seconds, String name) throws Exception {
        long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(seconds);
        DefaultMQAdminExt admin = admin(namesrv);
        String why = name + " is not registered";
        while (System.nanoTime() < deadline) {
            try {
                BrokerData broker = admin.examineBrokerClusterInfo().getBrokerAddrTable().get(name);
                if (broker != null) {
                    admin.fetchBrokerRuntimeStats(broker.selectBrokerAddr());
                    OUT.println("ready");
                    return;
                }
            } catch (RemotingException | MQBrokerException e) {
                why = e.toString();
            }
            Thread.sleep(100);
        }
        throw new Exception("not ready after " + seconds + " s: " + why);
    }

    /** The broker of this name. */
    private static String address(DefaultMQAdminExt admin, String name) throws Exception {
        return admin.examineBrokerClusterInfo().getBrokerAddrTable().get(name).selectBrokerAddr();
    }

    private static void create(String namesrv, String name, int queues, String[] args) throws Exception {
        String[] place = name.split("@", 2);
        String topic = place[0];
        TopicConfig config = new TopicConfig(topic, queues, queues);
        for (int i = 4; i < args.length; i++) {
            String[] attribute = args[i].split("=", 2);
            config.getAttributes().put("+" + attribute[0], attribute[1]);
        }
        DefaultMQAdminExt admin = admin(namesrv);
        List<String> brokers = new ArrayList<>();
        if (place.length == 2) {
            brokers.add(address(admin, place[1]));
        } else {
            brokers(admin).forEach(broker -> brokers.add(broker.selectBrokerAddr()));
        }
        boolean existed = true;
        for (String broker : brokers) {
            existed &= exists(admin, broker, topic);
            admin.createAndUpdateTopicConfig(broker, config);
        }
        // The brokers have it; a client sees it when each has told the name server.
        while (!routed(admin, topic, queues, brokers.size())) {
            Thread.sleep(20);
        }
        OUT.println(existed ? "exists" : "created");
    }

    private static boolean exists(DefaultMQAdminExt admin, String broker, String topic) throws Exception {
        try {
            return admin.examineTopicConfig(broker, topic) != null;
        } catch (MQBrokerException e) {
            if (e.getResponseCode() == ResponseCode.TOPIC_NOT_EXIST) {
                return false;
            }
            throw e;
        }
    }

    private static boolean routed(DefaultMQAdminExt admin, String topic, int queues, int brokers) throws Exception {
        try {
            var route = admin.examineTopicRouteInfo(topic);
            return route.getQueueDatas().size() == brokers
                    && route.getQueueDatas().stream().allMatch(q -> q.getReadQueueNums() == queues);
        } catch (MQClientException e) {
            if (e.getResponseCode() == ResponseCode.TOPIC_NOT_EXIST) {
                return false;
            }
            throw e;
        }
    }

    private static void delete(String namesrv, String topic) throws Exception {
        DefaultMQAdminExt admin = admin(namesrv);
        boolean existed = false;
        for (BrokerData broker : brokers(admin)) {
            existed |= exists(admin, broker.selectBrokerAddr(), topic);
        }
        if (existed) {
            admin.deleteTopic(topic, CLUSTER);
        }
        OUT.println(existed ? "deleted" : "absent");
    }

    private static void produce(String namesrv, String topic, String[] args) throws Exception {
        DefaultMQProducer producer = new DefaultMQProducer(GROUP + "-producer", SIGNATURE);
        producer.setNamesrvAddr(namesrv);
        producer.setSendMsgTimeout(10_000);
        producer.setCompressMsgBodyOverHowmuch(Integer.MAX_VALUE);
        int batch = 1;
        boolean compress = false;
        Charset charset = StandardCharsets.UTF_8;
        Map<String, String> properties = new HashMap<>();
        for (int i = 3; i < args.length; i += 2) {
            switch (args[i]) {
                case "--compress" -> {
                    compress = true;
                    producer.setCompressType(CompressionType.of(args[i + 1].toUpperCase()));
                    producer.setCompressLevel(5);
                    producer.setCompressMsgBodyOverHowmuch(1);
                }
                case "--batch" -> batch = Integer.parseInt(args[i + 1]);
                case "--charset" -> charset = Charset.forName(args[i + 1]);
                case "--property" -> {
                    String[] property = args[i + 1].split("=", 2);
                    properties.put(property[0], property[1]);
                }
                default -> throw new IllegalArgumentException("unknown option " + args[i]);
            }
        }
        if (compress && batch > 1) {
            throw new IllegalArgumentException("the client does not compress batches");
        }
        producer.start();
        Map<String, MessageQueue> queues = new HashMap<>();
        for (MessageQueue queue : producer.fetchPublishMessageQueues(topic)) {
            queues.put(String.valueOf(queue.getQueueId()), queue);
            queues.put(queue.getBrokerName() + ":" + queue.getQueueId(), queue);
        }

        Map<String, List<Message>> pending = new TreeMap<>();
        var in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        long sent = 0;
        for (String line; (line = in.readLine()) != null; sent++) {
            String[] fields = line.split("\t", 4);
            String queue = fields[0];
            if (!queues.containsKey(queue)) {
                throw new IllegalArgumentException("no queue " + queue + " in " + topic);
            }
            Message message = new Message(topic, fields[3].getBytes(charset));
            if (!fields[1].isEmpty()) {
                message.setTags(fields[1]);
            }
            if (!fields[2].isEmpty()) {
                message.setKeys(fields[2]);
            }
            properties.forEach(message::putUserProperty);
            if (batch == 1) {
                check(producer.send(message, queues.get(queue)));
                continue;
            }
            List<Message> list = pending.computeIfAbsent(queue, q -> new ArrayList<>());
            list.add(message);
            if (list.size() == batch) {
                check(producer.send(list, queues.get(queue)));
                list.clear();
            }
        }
        for (var rest : pending.entrySet()) {
            if (!rest.getValue().isEmpty()) {
                check(producer.send(rest.getValue(), queues.get(rest.getKey())));
            }
        }
        OUT.println("{\"sent\":" + sent + "}");
    }

    private static void check(SendResult result) throws Exception {
        if (result.getSendStatus() != SendStatus.SEND_OK) {
            throw new Exception("not stored for sure: " + result);
        }
    }

    private static DefaultMQPullConsumer consumer(String namesrv) throws MQClientException {
        return consumer(namesrv, GROUP + "-consumer");
    }

    private static DefaultMQPullConsumer consumer(String namesrv, String group) throws MQClientException {
        DefaultMQPullConsumer consumer = new DefaultMQPullConsumer(group, SIGNATURE);
        consumer.setNamesrvAddr(namesrv);
        consumer.start();
        return consumer;
    }

    /** Everything from each queue's first offset to what is its end now. */
    private static void consume(String namesrv, String topic) throws Exception {
        DefaultMQPullConsumer consumer = consumer(namesrv);
        Map<MessageQueue, Long> ends = new TreeMap<>();
        for (MessageQueue queue : consumer.fetchSubscribeMessageQueues(topic)) {
            ends.put(queue, consumer.maxOffset(queue));
        }
        for (var end : ends.entrySet()) {
            MessageQueue queue = end.getKey();
            long offset = consumer.minOffset(queue);
            int quiet = 0;
            while (offset < end.getValue()) {
                PullResult result = consumer.pull(queue, "*", offset, 32);
                switch (result.getPullStatus()) {
                    case FOUND -> {
                        // The client drops messages that it cannot decode, without a word.
                        long skipped = result.getNextBeginOffset() - offset - result.getMsgFoundList().size();
                        if (skipped != 0) {
                            throw new Exception(skipped + " messages lost at " + queue + " offset " + offset);
                        }
                        for (MessageExt message : result.getMsgFoundList()) {
                            if (message.getQueueOffset() < end.getValue()) {
                                print(message);
                            }
                        }
                        offset = result.getNextBeginOffset();
                        quiet = 0;
                    }
                    case NO_NEW_MSG -> {
                        // The index of a message that has just been stored may lag; it does not for long.
                        if (++quiet == 50) {
                            throw new Exception("nothing at " + queue + " offset " + offset);
                        }
                        Thread.sleep(100);
                    }
                    default -> throw new Exception(result.getPullStatus() + " at " + queue + " offset " + offset);
                }
            }
        }
    }

    private static void print(MessageExt message) {
        Map<String, Object> row = new LinkedHashMap<>();
        row.put("broker", message.getBrokerName());
        row.put("queue", message.getQueueId());
        row.put("offset", message.getQueueOffset());
        row.put("tags", message.getTags());
        row.put("keys", message.getKeys());
        row.put("body", new String(message.getBody(), StandardCharsets.UTF_8));
        row.put("properties", new TreeMap<>(message.getProperties()));
        row.put("bornTimestamp", message.getBornTimestamp());
        row.put("storeTimestamp", message.getStoreTimestamp());
        OUT.println(JSON.toJSONString(row, JSONWriter.Feature.WriteMapNullValue));
    }

    private static void ends(String namesrv, String topic) throws Exception {
        DefaultMQPullConsumer consumer = consumer(namesrv);
        Map<MessageQueue, long[]> ends = new TreeMap<>();
        for (MessageQueue queue : consumer.fetchSubscribeMessageQueues(topic)) {
            ends.put(queue, new long[] {consumer.minOffset(queue), consumer.maxOffset(queue)});
        }
        ends.forEach((queue, range) -> OUT.printf("{\"broker\":\"%s\",\"queue\":%d,\"min\":%d,\"max\":%d}%n",
                queue.getBrokerName(), queue.getQueueId(), range[0], range[1]));
    }

    /** Lets a broker drop all files of its log but the newest, whatever their age; it does so after a while. */
    private static void expire(String namesrv, String name) throws Exception {
        DefaultMQAdminExt admin = admin(namesrv);
        String broker = address(admin, name);
        Properties keepNothing = new Properties();
        keepNothing.setProperty("fileReservedTime", "0");
        admin.updateBrokerConfig(broker, keepNothing);
        admin.deleteExpiredCommitLogByAddr(broker);
        OUT.println("expiring");
    }

    /** A consumer of the group, which is made if need be, says where it stands. */
    private static void commit(String namesrv, String topic, String group, String[] args) throws Exception {
        DefaultMQAdminExt admin = admin(namesrv);
        SubscriptionGroupConfig config = new SubscriptionGroupConfig();
        config.setGroupName(group);
        for (BrokerData broker : brokers(admin)) {
            admin.createAndUpdateSubscriptionGroupConfig(broker.selectBrokerAddr(), config);
        }
        DefaultMQPullConsumer consumer = consumer(namesrv, group);
        Map<Integer, MessageQueue> queues = new HashMap<>();
        for (MessageQueue queue : consumer.fetchSubscribeMessageQueues(topic)) {
            queues.put(queue.getQueueId(), queue);
        }
        for (int i = 4; i < args.length; i++) {
            String[] offset = args[i].split("=", 2);
            MessageQueue queue = queues.get(Integer.parseInt(offset[0]));
            consumer.getOffsetStore().updateConsumeOffsetToBroker(queue, Long.parseLong(offset[1]), false);
        }
        OUT.println("committed");
    }

    /** Where queues end, and where the group stands in them, as mqadmin consumerProgress has it. */
    private static void progress(String namesrv, String topic, String group) throws Exception {
        DefaultMQAdminExt admin = admin(namesrv);
        // The name server hears of the group's topic a moment later.
        for (int tries = 1; tries < 50; tries++) {
            try {
                admin.examineTopicRouteInfo("%RETRY%" + group);
                break;
            } catch (MQClientException e) {
                Thread.sleep(100);
            }
        }
        new TreeMap<>(admin.examineConsumeStats(group, topic).getOffsetTable()).forEach((queue, offsets) ->
                OUT.printf("{\"queue\":%d,\"end\":%d,\"group\":%d}%n",
                        queue.getQueueId(), offsets.getBrokerOffset(), offsets.getConsumerOffset()));
    }

    /** What each broker has of a topic, as mqadmin topicList and updateTopic know it. */
    private static void settings(String namesrv, String topic) throws Exception {
        DefaultMQAdminExt admin = admin(namesrv);
        for (BrokerData broker : brokers(admin)) {
            TopicConfig config = admin.examineTopicConfig(broker.selectBrokerAddr(), topic);
            OUT.printf("{\"broker\":\"%s\",\"perm\":%d,\"read\":%d,\"write\":%d,\"order\":%b,\"type\":\"%s\"}%n",
                    broker.getBrokerName(), config.getPerm(), config.getReadQueueNums(), config.getWriteQueueNums(),
                    config.isOrder(), config.getTopicMessageType().getValue());
        }
    }

    /** The groups that are not the brokers' own. */
    private static void groups(String namesrv) throws Exception {
        DefaultMQAdminExt admin = admin(namesrv);
        TreeSet<String> groups = new TreeSet<>();
        for (BrokerData broker : brokers(admin)) {
            groups.addAll(admin.getUserSubscriptionGroup(broker.selectBrokerAddr(), 10_000)
                    .getSubscriptionGroupTable().keySet());
        }
        groups.forEach(OUT::println);
    }

    /** Who consumes in a group, as mqadmin consumerConnection has it. */
    private static void members(String namesrv, String group) throws Exception {
        for (Connection connection : connections(admin(namesrv), group)) {
            OUT.printf("{\"member\":\"%s\",\"client\":\"%s %s\",\"host\":\"%s\"}%n", connection.getClientId(),
                    connection.getLanguage(), MQVersion.getVersionDesc(connection.getVersion()),
                    connection.getClientAddr());
        }
    }

    private static Collection<Connection> connections(DefaultMQAdminExt admin, String group) throws Exception {
        Map<String, Connection> connections = new TreeMap<>();
        for (BrokerData broker : brokers(admin)) {
            try {
                var found = admin.examineConsumerConnectionInfo(group, broker.selectBrokerAddr());
                found.getConnectionSet().forEach(each -> connections.putIfAbsent(each.getClientId(), each));
            } catch (MQBrokerException e) {
                if (e.getResponseCode() != ResponseCode.CONSUMER_NOT_ONLINE) {
                    throw e;
                }
            }
        }
        return connections.values();
    }

    /** Is a member of a group that has subscribed to the topic, until stdin ends. */
    private static void join(String namesrv, String group, String topic) throws Exception {
        DefaultMQPullConsumer consumer = new DefaultMQPullConsumer(group, SIGNATURE);
        consumer.setNamesrvAddr(namesrv);
        consumer.registerMessageQueueListener(topic, (changed, all, divided) -> { });
        consumer.start();
        DefaultMQAdminExt admin = admin(namesrv);
        while (connections(admin, group).isEmpty()) {
            Thread.sleep(100);
        }
        OUT.println("READY");
        OUT.flush();
        System.in.read();
        consumer.shutdown();
    }

    /** Makes a user who may do nothing yet. */
    private static void user(String namesrv, String broker, String name, String secret) throws Exception {
        DefaultMQAdminExt admin = admin(namesrv);
        admin.createUser(address(admin, broker), name, secret, "Normal");
        OUT.println("created");
    }

    /** Says what a user may do with a resource, instead of what was said of it before. */
    private static void allow(String namesrv, String broker, String user, String resource, List<String> actions)
            throws Exception {
        DefaultMQAdminExt admin = admin(namesrv);
        admin.createAcl(address(admin, broker), "User:" + user, List.of(resource), actions, null, "Allow");
        OUT.println("allowed");
    }
}
