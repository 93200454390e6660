#!/usr/bin/env python3
"""A client of Windrow's wire contract, written from docs/wire.md and nothing else.

produce   publishes one chunk to a stage's work queue, reads the completions of its run, and checks that every
          item succeeded once with itself as output (the stage is to be an `echo`).
consume   takes chunks from a stage's queues and works on them as a consumer does: asks about copies, doubles
          the `n` of each item, fails items without one, sends items with `later` on to the next hop once.

Both print one JSON object a line on standard output; exit code 0 means that the contract held.
"""

import argparse
import json
import sys
import time
import uuid

import pika

VERSION = 1
# Whole numbers beyond this are changed by readers that make floating point numbers of them.
FLOAT_EXACT = 1 << 53
DELAY_LEVELS = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024]


# --- Ranges and counts -----------------------------------------------------------------------------------


def read_ranges(text):
    """The indexes of `17,20-22`, ascending."""
    indexes = []
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        indexes.extend(range(int(first), int(last or first) + 1))
    return indexes


def write_ranges(indexes):
    parts = []
    for index in indexes:
        if parts and parts[-1][1] + 1 == index:
            parts[-1][1] = index
        else:
            parts.append([index, index])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


def read_counts(text, expected, value=int):
    """The values of `1*99,2`; absent text means all are 0."""
    if text is None:
        return [0] * expected
    values = []
    for part in filter(None, text.split(",")):
        single, _, count = part.partition("*")
        values.extend([value(single)] * int(count or 1))
    if len(values) != expected:
        raise ValueError(f"{len(values)} values for {expected} items")
    return values


def write_counts(values):
    parts = []
    for value in values:
        if parts and parts[-1][0] == value:
            parts[-1][1] += 1
        else:
            parts.append([value, 1])
    return ",".join(str(value) if count == 1 else f"{value}*{count}" for value, count in parts)


# --- Names, queues, exchanges ----------------------------------------------------------------------------


def part(name):
    return name.replace(".", "~")


class Stage:
    """The names of one stage of one group."""

    def __init__(self, group, job, stage):
        self.group, self.job, self.stage = group, job, stage
        self.key = ".".join(map(part, (group, job, stage)))
        self.exchange = f"windrow.v1.group.{part(group)}"
        self.work = f"windrow.v1.work.{self.key}"
        self.due = f"windrow.v1.due.{self.key}"
        self.held = f"windrow.v1.held.{self.key}"
        self.alone = f"windrow.v1.alone.{self.key}"
        self.completion = f"windrow.v1.completion.{part(group)}"
        self.parking = f"windrow.v1.parking.{part(group)}"


def declare(channel, stage):
    """The whole topology; the broker refuses it where it is there already and differs in anything."""
    due, stray, group = "windrow.v1.due", "windrow.v1.stray", part(stage.group)
    channel.exchange_declare(stray, "topic", durable=True)
    channel.exchange_declare(due, "direct", durable=True, arguments={"alternate-exchange": stray})
    channel.exchange_declare(stage.exchange, "direct", durable=True)
    channel.exchange_declare(f"windrow.v1.answer.{group}", "direct", durable=True)
    channel.exchange_declare(f"windrow.v1.control.{group}", "fanout", durable=True)

    quorum = {"x-queue-type": "quorum", "x-queue-leader-locator": "balanced"}
    lasting = {"x-overflow": "reject-publish", "x-dead-letter-strategy": "at-least-once"}
    parked = {**quorum, **lasting, "x-dead-letter-exchange": stage.exchange, "x-dead-letter-routing-key": stage.parking}
    dead = {**parked, "x-dead-letter-routing-key": stage.completion}
    queues = {
        stage.work: {**dead, "x-delivery-limit": 50},
        stage.due: {**dead, "x-delivery-limit": 50},
        stage.held: {**dead, "x-delivery-limit": 50},
        stage.alone: {**dead, "x-delivery-limit": 50},
        stage.completion: {**parked, "x-delivery-limit": 10_000, "x-single-active-consumer": True},
        stage.parking: {**quorum, "x-delivery-limit": 1_000_000_000},
    }
    for queue, arguments in queues.items():
        channel.queue_declare(queue, durable=True, arguments=arguments)
        channel.queue_bind(queue, stage.exchange, queue)
    channel.queue_bind(stage.due, due, stage.key)
    channel.queue_bind(stage.completion, stray, f"{group}.#")
    for seconds in DELAY_LEVELS:
        level = f"windrow.v1.delay.{seconds}"
        waiting = {"x-delivery-limit": 1_000_000_000, "x-dead-letter-exchange": due, "x-message-ttl": seconds * 1000}
        channel.exchange_declare(level, "fanout", durable=True)
        channel.queue_declare(level, durable=True, arguments={**quorum, **lasting, **waiting})
        channel.queue_bind(level, level, "")


class Client:
    """One connection: a channel to publish with confirms, and one to consume."""

    def __init__(self, url):
        self.connection = pika.BlockingConnection(pika.URLParameters(url))
        self.publishing = self.connection.channel()
        self.publishing.confirm_delivery()
        self.consuming = self.connection.channel()

    def publish(self, exchange, key, kind, message_id, headers, body=b"", reply_to=None):
        """Returns once the broker has the message safe; raises when no queue takes it."""
        properties = pika.BasicProperties(
            type=kind,
            message_id=message_id,
            reply_to=reply_to,
            content_type="application/x-ndjson",
            delivery_mode=2,
            headers={"version": VERSION, **headers},
        )
        self.publishing.basic_publish(exchange, key, body, properties, mandatory=True)

    def consume(self, queues, prefetch):
        self.consuming.basic_qos(prefetch_count=prefetch)
        deliveries = []
        for queue in queues:
            self.consuming.basic_consume(queue, lambda _, *delivery: deliveries.append(delivery))
        return deliveries

    def wait_for(self, deliveries, deadline):
        while not deliveries:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("no message came in time")
            self.connection.process_data_events(time_limit=min(left, 1.0))
        return deliveries.pop(0)

    def ack(self, method):
        self.consuming.basic_ack(method.delivery_tag)


def check_version(headers):
    if headers.get("version") not in (VERSION - 1, VERSION):
        raise ValueError(f"version {headers.get('version')} is not understood")


def lines_of(body, expected):
    lines = body.split(b"\n")
    if lines and not lines[-1]:
        lines.pop()
    if len(lines) != expected:
        raise ValueError(f"{len(lines)} lines for {expected} items")
    return lines


def say(**fields):
    print(json.dumps(fields), flush=True)


# --- produce ---------------------------------------------------------------------------------------------


def items_to_send(count):
    """Items that a careless reader would change: long numbers, escapes, spaces between tokens."""
    return [
        f'{{"n": {index}, "name":"item\\u0020{index}", "big": {FLOAT_EXACT + 1 + 2 * index}, "half":0.50}}'
        for index in range(count)
    ]


def produce(arguments):
    stage = Stage(arguments.group, arguments.job, arguments.stage)
    client = Client(arguments.url)
    declare(client.publishing, stage)
    run = str(uuid.uuid4())
    items = items_to_send(arguments.items)
    span = write_ranges(range(len(items)))
    headers = {
        "run": run,
        "root_run": run,
        "job": stage.job,
        "hash": arguments.hash,
        "stage": stage.stage,
        "source": "main",
        "ordinal": 0,
        "span": span,
        "items": span,
        "hop": 0,
        "id_field": "name",
    }
    message_id = f"{run}/{stage.stage}/main/0/0/{span}"
    body = "".join(item + "\n" for item in items).encode()
    client.publish(stage.exchange, stage.work, "chunk", message_id, headers, body)

    outputs = {}
    deliveries = client.consume([stage.completion], 50)
    deadline = time.monotonic() + arguments.timeout
    while len(outputs) < len(items):
        method, properties, body = client.wait_for(deliveries, deadline)
        if properties.headers.get("run") == run:
            read_outcomes(properties, body, outputs)
        client.ack(method)
    problems = differences(items, outputs)
    say(verdict="ok" if not problems else "wrong", run=run, settled=len(outputs), problems=problems[:10])
    return 0 if not problems else 1


def read_outcomes(properties, body, outputs):
    """Adds what an `outcomes` message says: by index, the outcome, attempts, id and line."""
    headers = properties.headers
    check_version(headers)
    if properties.type != "outcomes":
        raise ValueError(f"a completion of type {properties.type}")
    indexes = read_ranges(headers["items"])
    outcomes = read_counts(headers["outcomes"], len(indexes), str)
    attempts = read_counts(headers.get("attempts"), len(indexes))
    for index, outcome, tries, line in zip(indexes, outcomes, attempts, lines_of(body, len(indexes))):
        identity = None
        if headers.get("ids"):
            identity, _, line = line.partition(b"\t")
            identity = json.loads(identity)
        if index in outputs:
            raise ValueError(f"item {index} settled twice")
        outputs[index] = (outcome, tries, identity, line.decode())


def differences(items, outputs):
    problems = []
    for index, item in enumerate(items):
        outcome, attempts, identity, line = outputs.get(index, (None, None, None, None))
        expected = ("succeeded", 1, f"item {index}", item)
        if (outcome, attempts, identity, line) != expected:
            problems.append(f"item {index}: {(outcome, attempts, identity, line)}, not {expected}")
    problems.extend(f"item {index} was never sent" for index in outputs if not 0 <= index < len(items))
    return problems


# --- consume ---------------------------------------------------------------------------------------------


class Answers:
    """This process's own queue."""

    def __init__(self, client, group):
        self.process = uuid.uuid4().hex
        queue = f"windrow.v1.process.{part(group)}.{self.process}.{uuid.uuid4().hex}"
        channel = client.consuming
        arguments = {"x-max-length": 1000, "x-message-ttl": 10000}
        channel.queue_declare(queue, exclusive=True, arguments=arguments)
        channel.queue_bind(queue, f"windrow.v1.answer.{part(group)}", self.process)
        channel.queue_bind(queue, f"windrow.v1.control.{part(group)}", "")
        self.received = []
        channel.basic_consume(queue, lambda _, *delivery: self.received.append(delivery), auto_ack=True)

    def wait(self, client, token):
        """The indexes to run, or None after 5 s."""
        deadline = time.monotonic() + 5
        while True:
            try:
                _, properties, body = client.wait_for(self.received, deadline)
            except TimeoutError:
                return None
            check_version(properties.headers)
            if properties.type == "answer" and (answer := json.loads(body))["token"] == token:
                return read_ranges(answer["run_items"])


class Delivery:
    """A chunk as it was delivered."""

    def __init__(self, method, properties, body):
        self.method, self.headers = method, properties.headers
        check_version(self.headers)
        if properties.type != "chunk":
            raise ValueError(f"a {properties.type} on a work queue")
        self.hop = self.headers.get("hop", 0)
        self.indexes = read_ranges(self.headers["items"])
        lines = lines_of(body, len(self.indexes))
        attempts = read_counts(self.headers.get("attempts"), len(self.indexes))
        self.items = dict(zip(self.indexes, zip(lines, attempts)))
        self.may_be_copy = method.redelivered or self.hop > 0 or bool(self.headers.get("resent"))

    def identity(self):
        return {name: self.headers[name] for name in ("run", "stage", "source", "ordinal", "span")}

    def message_id(self, hop, items):
        names = ("run", "stage", "source", "ordinal")
        return "/".join(str(part) for part in (*(self.headers[name] for name in names), hop, items))


def consume(arguments):
    stage = Stage(arguments.group, arguments.job, arguments.stage)
    client = Client(arguments.url)
    declare(client.publishing, stage)
    answers = Answers(client, arguments.group)
    deliveries = client.consume([stage.due, stage.work], 2)
    say(event="ready", process=answers.process)
    deadline = time.monotonic() + arguments.timeout
    for _ in range(arguments.chunks):
        delivery = Delivery(*client.wait_for(deliveries, deadline))
        handle(client, stage, answers, delivery, arguments.hash)
    client.connection.close()
    return 0


def handle(client, stage, answers, delivery, known_hash):
    if delivery.headers["hash"] != known_hash:
        raise ValueError("a chunk of another version of the job")
    wanted = delivery.indexes
    if delivery.may_be_copy:
        wanted = ask(client, stage, answers, delivery)
        if wanted is None:
            raise TimeoutError("no answer came")
    ended, later = [], []
    for index in wanted:
        line, attempts = delivery.items[index]
        (later if is_later(line, attempts) else ended).append(index)
    # Remainder, then outcomes, then the ack, each confirmed before the next.
    if later:
        send_remainder(client, stage, delivery, later)
    send_outcomes(client, stage, delivery, ended, later)
    client.ack(delivery.method)
    say(event="settled", hop=delivery.hop, ended=write_ranges(ended), handed_over=write_ranges(later))


def ask(client, stage, answers, delivery):
    token = uuid.uuid4().hex
    items = delivery.headers["items"]
    headers = {**delivery.identity(), "hop": delivery.hop, "items": items, "token": token}
    message_id = f"{delivery.message_id(delivery.hop, items)}/{token}"
    client.publish(stage.exchange, stage.completion, "question", message_id, headers, reply_to=answers.process)
    return answers.wait(client, token)


def is_later(line, attempts):
    return attempts == 0 and "later" in json.loads(line)


def send_remainder(client, stage, delivery, indexes):
    """The items once more, in a second, one hop further."""
    kept = ("root_run", "job", "hash", "expires", "id_field", "traceparent")
    items = write_ranges(indexes)
    headers = {
        **delivery.identity(),
        **{name: delivery.headers[name] for name in kept if name in delivery.headers},
        "items": items,
        "attempts": write_counts([delivery.items[index][1] + 1 for index in indexes]),
        "hop": delivery.hop + 1,
    }
    body = b"".join(delivery.items[index][0] + b"\n" for index in indexes)
    message_id = delivery.message_id(delivery.hop + 1, items)
    client.publish("windrow.v1.delay.1", stage.key, "chunk", message_id, headers, body)


def send_outcomes(client, stage, delivery, indexes, handed_over):
    id_field = delivery.headers.get("id_field")
    outcomes, lines = [], []
    for index in indexes:
        item = json.loads(delivery.items[index][0])
        if "n" in item:
            outcomes.append("succeeded")
            line = json.dumps({"double": item["n"] * 2})
        else:
            outcomes.append("failed")
            line = json.dumps({"class": "no_number", "message": "the item has no n"})
        identity = json.dumps(str(item.get(id_field, ""))) + "\t" if id_field else ""
        lines.append(identity + line + "\n")
    items = write_ranges(indexes)
    headers = {
        **delivery.identity(),
        "hop": delivery.hop,
        "items": items,
        "outcomes": write_counts(outcomes),
        "attempts": write_counts([delivery.items[index][1] + 1 for index in indexes]),
    }
    if handed_over:
        headers["handed_over"] = write_ranges(handed_over)
    if id_field:
        headers["ids"] = 1
    message_id = delivery.message_id(delivery.hop, items)
    client.publish(stage.exchange, stage.completion, "outcomes", message_id, headers, "".join(lines).encode())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_subparsers(dest="mode", required=True)
    for name, count, what in (("produce", "--items", "items to send"), ("consume", "--chunks", "chunks to take")):
        mode = modes.add_parser(name)
        for option in ("--url", "--job", "--stage", "--hash"):
            mode.add_argument(option, required=True)
        mode.add_argument("--group", default="main")
        mode.add_argument("--timeout", type=float, default=60, help="seconds to wait for a message")
        mode.add_argument(count, type=int, default=1, help=what)
    arguments = parser.parse_args()
    return produce(arguments) if arguments.mode == "produce" else consume(arguments)


if __name__ == "__main__":
    sys.exit(main())
