#!/usr/bin/env python3
"""Remove each guard of eoq once, and check that a test fails.

A guard is a line that a guarantee rests on. A test that passes without the guard does not test it. For each entry
of `GUARDS` this script replaces one text in a scratch copy of the tree and runs the tests that must notice.

    .ci/guards.py                   # all guards, about ten minutes; exit status 1 if one is not caught
    .ci/guards.py --list            # their names
    .ci/guards.py --only NAME ...   # some of them

When code is rewritten, an entry may say that its text is not there any more: write the new text into the entry. The
slow tests run all entries as well (``tests/faults/test_guards.py``).
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final


@dataclass(frozen=True)
class Guard:
    """A guard: the ``old`` text in ``file`` that is it, and the ``new`` text without it.

    ``tests`` is the test file that must fail then. ``select`` is a ``-k`` expression for a file that takes long.
    ``needs`` is a program without which these tests are skipped.
    """

    name: str
    file: str
    old: str
    new: str
    tests: str
    select: str = ""
    needs: str = ""


TRIES: Final = 2
"""How often the tests run without a guard. What they provoke may fail to happen once on a busy machine."""

GUARDS: Final = (
    # ── inbox ───────────────────────────────────────────────────────────────────────────────────────────────
    Guard(
        "late delivery is refused",
        "eoq/inbox/rules/pruning.py",
        old="return stored is not None and (",
        new="return False and (",
        tests="tests/model/test_retention.py",
    ),
    Guard(
        "keep is counted from the watermark's date",
        "eoq/inbox/rules/pruning.py",
        old="limits = Limits(received.watermark, min(belief.forgotten_to, received.requested_at - keep))",
        new="limits = Limits(received.watermark, belief.forgotten_to)",
        tests="tests/model/test_retention.py",
    ),
    Guard(
        "clock that is ahead for a moment is not believed",
        "eoq/inbox/rules/belief.py",
        old="if keep == 0 or now - (before.forgotten_to + keep) <= reach:",
        new="if True:",
        tests="tests/model/test_retention.py",
    ),
    Guard(
        "date by a clock that is behind does not count",
        "eoq/inbox/rules/belief.py",
        old="return now if now >= known_past else",
        new="return now if True else",
        tests="tests/model/test_retention.py",
    ),
    Guard(
        "watermark is compared with ids of its own file",
        "eoq/inbox/sweeping.py",
        old="and (source is null or source = ?)",
        new="and (true or source = ?)",
        tests="tests/integration/test_inbox_tables.py",
        select="of_another",
    ),
    Guard(
        "other content is never acked with the old result",
        "eoq/inbox/rules/effects.py",
        old="digest != digest_of(message)",
        new="False",
        tests="tests/integration/test_inbox_tables.py",
        select="other_content",
    ),
    Guard(
        "redelivery is noted",
        "eoq/inbox/transaction.py",
        old="self._again.append(message)",
        new="pass",
        tests="tests/model/test_retention.py",
    ),
    Guard(
        "inbox commits with synchronous extra",
        "eoq/system/sqlite.py",
        old='"pragma synchronous = extra"',
        new='"pragma synchronous = full"',
        tests="tests/integration/test_inbox_once.py",
    ),
    Guard(
        "handler cannot commit",
        "eoq/inbox/guard.py",
        old="if self.active and (action in _ENDING or",
        new="if self.active and (",
        tests="tests/integration/test_inbox_once.py",
    ),
    Guard(
        "handler cannot write after a lost transaction",
        "eoq/inbox/guard.py",
        old=" or (action not in _READING and not self._database.in_transaction)",
        new="",
        tests="tests/integration/test_inbox_once.py",
    ),
    Guard(
        "guest's refused commit is noticed",
        "eoq/inbox/transaction.py",
        old=" or (self._joined and self._guard.refused)",
        new="",
        tests="tests/integration/test_guest_inbox.py",
    ),
    Guard(
        "a batch that fails is tried one by one",
        "eoq/inbox/blocking.py",
        old="if len(batch) > 1 and (results or not outcomes.is_outage(error)):",
        new="if False:",
        tests="tests/integration/test_inbox_once.py",
        select="of_many",
    ),
    Guard(
        "a locked file counts no attempt",
        "eoq/outcomes.py",
        old="    elif is_outage(error):\n        message.release()\n",
        new="",
        tests="tests/integration/test_worker_attempts.py",
        select="locked_file",
    ),
    Guard(
        "a loop that fails alike pauses",
        "eoq/worker/reports.py",
        old="return self._count >= ALIKE",
        new="return False",
        tests="tests/integration/test_worker_attempts.py",
        select="fails_alike",
    ),
    Guard(
        "a relay marks only rows that are still there",
        "eoq/outbox/file.py",
        old="left = [row for row in rows if (row.seq, row.key) in since]",
        new="left = list(rows)\n            since = {(row.seq, row.key): now for row in rows}",
        tests="tests/faults/test_sleepers.py",
        select="relay",
    ),
    Guard(
        "a relay says until when it may send",
        "eoq/client/batch_sender.py",
        old="for _, message in batch], not_after))",
        new="for _, message in batch]))",
        tests="tests/faults/test_sleepers.py",
        select="relay",
    ),
    Guard(
        "a repeat says until when it may be stored",
        "eoq/protocol/features.py",
        old="if not_after is not None:",
        new="if False:",
        tests="tests/faults/test_sleepers.py",
        select="client",
    ),
    Guard(
        "a spooled file of a topic goes by the shortest retention",
        "eoq/daemon/services/topics.py",
        old="return name in self._ever",
        new="return False",
        tests="tests/faults/test_sleepers.py",
        select="topic",
    ),
    Guard(
        "a purge says which message is its last",
        "eoq/client/admin.py",
        old="upto: int | None = self.channel.run(admin_calls.last_seq(queue))",
        new="upto: int | None = 2**62",
        tests="tests/faults/test_sleepers.py",
        select="purge",
    ),
    Guard(
        "a batch keeps few messages that failed before",
        "eoq/worker/options.py",
        old="return self.concurrency if self.batch > 1 else None",
        new="return None",
        tests="tests/integration/test_worker_attempts.py",
        select="kills_its_worker",
    ),
    Guard(
        "a worker says how many messages it handles at once",
        "eoq/worker/blocking.py",
        old="if self._channel.knows(HANDLES) else None",
        new="if False else None",
        tests="tests/integration/test_worker_attempts.py",
        select="kills_its_worker",
    ),
    Guard(
        "the shell function syncs the file before the rename",
        "cli/eoq_send.sh",
        old='command sync "$unfinished" ||',
        new="true ||",
        tests="tests/cli/test_shell_init.py",
        select="few_processes and bash",
    ),
    Guard(
        "the shell function notices a body that was not written whole",
        "cli/eoq_send.sh",
        old="""put() { [ -z "$1" ] || syswrite -- "$1"; }""",
        new="""put() { printf %s "$1"; }""",
        tests="tests/cli/test_shell_init.py",
        select="full_disk and zsh",
        needs="zsh",
    ),
    Guard(
        "a short command repeats with a limit",
        "eoq/transport/single.py",
        old="exchange([request], left, sent_at)",
        new="exchange([request], left)",
        tests="tests/integration/test_single.py",
    ),
    Guard(
        "a short command keeps the id of a message",
        "cli/quick.py",
        old='new_id() if values["id"] is None else values["id"]',
        new="new_id()",
        tests="tests/cli/test_quick.py",
    ),
    Guard(
        "a child leaves the leases of its parent alone",
        "eoq/transport/channel.py",
        old="self.generation += 1  # the child must not give back",
        new="pass  # the child must not give back",
        tests="tests/integration/test_worker_attempts.py",
        select="child_process",
    ),
    # ── deliveries ──────────────────────────────────────────────────────────────────────────────────────────
    Guard(
        "ack is fenced by the delivery number",
        "eoq/daemon/store/sqlite/deliveries/acks.py",
        old="if leased is not None and leased.number == delivery.number:",
        new="if leased is not None:",
        tests="tests/model/test_model.py",
    ),
    Guard(
        "repeated ack is fenced by the delivery number",
        "eoq/daemon/store/sqlite/deliveries/acks.py",
        old="if found is None or found != (self._lives.find(delivery.life), delivery.number):",
        new="if found is None:",
        tests="tests/integration/test_receiving.py",
        select="lost_its_lease",
    ),
    Guard(
        "dead message holds the watermark",
        "eoq/daemon/store/sqlite/deliveries/claims.py",
        old="select min(seq) from message where queue = ?1 and state = 'dead'",
        new="select min(seq) from message where queue = ?1 and state = 'dead' and false",
        tests="tests/model/test_model.py",
    ),
    Guard(
        "expired or dropped message holds the watermark",
        "eoq/daemon/store/sqlite/deliveries/claims.py",
        old="outcome <> 'done' and delivery is not null",
        new="outcome <> 'done' and delivery is not null and false",
        tests="tests/model/test_retention.py",
    ),
    Guard(
        "an id that is known keeps its message",
        "eoq/daemon/store/sqlite/sending/puts.py",
        old="insert or ignore into known_id",
        new="insert or replace into known_id",
        tests="tests/model/test_store.py",
        select="imported",
    ),
    Guard(
        "an id whose send is refused is not known",
        "eoq/daemon/store/sqlite/sending/puts.py",
        old="in self._database.execute(_STORED_SINCE, (first,)).fetchall():",
        new="in ():",
        tests="tests/model/test_store_parts.py",
        select="all_or_none",
    ),
    Guard(
        "put and claim together do not pass a ready message",
        "eoq/daemon/store/sqlite/deliveries/claims.py",
        old="if ready is not None or lower is not None:",
        new="if False:",
        tests="tests/model/test_batching.py",
        select="have_to_be_two",
    ),
    Guard(
        "time to live of a leased message follows the clock",
        "eoq/daemon/store/sqlite/deliveries/returns.py",
        old="expires_at <= :unset",
        new="expires_at <= :now",
        tests="tests/model/test_model.py",
    ),
    Guard(
        "a wait is stored without what the clock was set by",
        "eoq/daemon/store/sqlite/sending/puts.py",
        old="message.due_at if message.fixed else unset(message.due_at)",
        new="message.due_at",
        tests="tests/model/test_model.py",
    ),
    Guard(
        "a repeated drop of all dead letters drops those that the first one saw",
        "eoq/daemon/store/sqlite/tables/dead_letters.py",
        old="return command.seen_at is None or",
        new="return True or",
        tests="tests/faults/test_sleepers.py",
        select="dead_letters",
    ),
    Guard(
        "a file of the spool comes behind those that wait, whatever the clock says",
        "eoq/spool/sender.py",
        old="number = max(now, ",
        new="number = min(now, ",
        tests="tests/integration/test_spool_order.py",
        select="whatever",
    ),
    Guard(
        "a file that is claimed after the clock was set back waits for those claimed before",
        "eoq/daemon/services/spool/spool_queue.py",
        old="if tokens and tokens[0] <= after:",
        new="if False:",
        tests="tests/integration/test_spool_order.py",
        select="claimed",
    ),
    Guard(
        "an inbox acks nothing that was committed to a file without a name",
        "eoq/inbox/transaction.py",
        old="            self.file.check()",
        new="            pass",
        tests="tests/integration/test_inbox_replaced.py",
        select="path or connection",
    ),
    Guard(
        "a file whose token is renewed stays before those behind it",
        "eoq/daemon/services/spool/spool_queue.py",
        old="range(first, len(batch))), reversed(tokens), strict=True",
        new="range(first, first + 1)), reversed(tokens[:1])",
        tests="tests/integration/test_spool_order.py",
        select="renewed",
    ),
    Guard(
        "what was delivered before it expired may have taken effect",
        "eoq/daemon/store/sqlite/deliveries/settled.py",
        old="error if delivery is None else error + DELIVERED_BEFORE",
        new="error",
        tests="tests/integration/test_limits.py",
        select="undelivered",
    ),
    Guard(
        "a handler that meets the lock of its own inbox uses an attempt",
        "eoq/outcomes.py",
        old="        error.add_note(_HANDLERS_LOCK)",
        new="        pass",
        tests="tests/integration/test_inbox_locks.py",
    ),
    Guard(
        "an inbox whose disk failed to sync applies no more messages",
        "eoq/inbox/committed.py",
        old="        self.failed = True",
        new="        pass",
        tests="tests/integration/test_inbox_disk.py",
        select="failed_sync",
    ),
    Guard(
        "a message whose asyncio transaction lost its connection can be settled again",
        "eoq/inbox/aio_guest.py",
        old="            self.processed.abandon()",
        new="            pass",
        tests="tests/integration/test_async_cancellations.py",
        select="SQLAlchemy",
    ),
    Guard(
        "receipt of another life settles nothing",
        "eoq/daemon/broker/leases.py",
        old="return DeliveryRef(seq, number, ended=True, life=parts[0], queue_id=queue_id, id=id)",
        new="return DeliveryRef(seq, number, queue_id=queue_id, id=id)",
        tests="tests/integration/test_receiving.py",
        select="after_a_restart",
    ),
    Guard(
        "only what was being handled counts",
        "eoq/daemon/store/sqlite/deliveries/leased.py",
        old="self._still_leased(delivery)[: delivery.handles]",
        new="self._still_leased(delivery)",
        tests="tests/integration/test_attempts.py",
    ),
    Guard(
        "only what was being handled counts after a kill",
        "eoq/daemon/store/sqlite/deliveries/recovery.py",
        old="if handles is None or counts[number] <= handles:",
        new="if True:",
        tests="tests/integration/test_attempts.py",
    ),
    Guard(
        "only a record that awaits a result takes one",
        "eoq/daemon/store/sqlite/deliveries/far_results.py",
        old="if far_outcome not in OPEN or far_outcome == result.outcome:",
        new="if far_outcome == result.outcome:",
        tests="tests/integration/test_bridge_results.py",
    ),
    Guard(
        "place of the next claim follows a rollback",
        "eoq/daemon/store/sqlite/deliveries/leased.py",
        old="if key > place.key:\n            self._database.on_rollback(place.start_again)",
        new="if key > place.key:",
        tests="tests/model/test_leased.py",
    ),
    Guard(
        "id that is settled is not stored again",
        "eoq/daemon/store/sqlite/sending/puts.py",
        old="if self._find(send[1])[0] == seq:",
        new="if True:",
        tests="tests/model/test_store.py",
        select="imported",
    ),
    # ── what the daemon has stored ──────────────────────────────────────────────────────────────────────────
    Guard(
        "commit waits for the disk",
        "eoq/daemon/store/sqlite/database.py",
        old='"pragma synchronous = full" if durable else',
        new='"pragma synchronous = normal" if durable else',
        tests="tests/power/test_power_loss.py",
        select="sync",
    ),
    Guard(
        "a client that has gone is given no messages",
        "eoq/daemon/server/connection.py",
        old="        self._session.hung_up = self._hung_up\n",
        new="",
        tests="tests/integration/test_interruptions.py",
        select="is_gone",
    ),
    Guard(
        "a receive that was cancelled is given no messages",
        "eoq/daemon/broker/receivers.py",
        old="receiver.cancelled = True",
        new="receiver.cancelled = False",
        tests="tests/faults/test_slow_disk.py",
        select="cancelled_while",
    ),
    Guard(
        "a longer retention does not bring forgotten ids back",
        "eoq/daemon/services/remembered.py",
        old="if _may_be_longer(old, new):",
        new="if False:",
        tests="tests/faults/test_sleepers.py",
        select="longer_retention",
    ),
    Guard(
        "a transaction that writes nothing does not count as one that writes the log back",
        "eoq/daemon/store/sqlite/database.py",
        old="if durable and self._database.total_changes != changes:",
        new="if durable:",
        tests="tests/faults/test_storage_trouble.py",
        select="writes_nothing",
    ),
    Guard(
        "a commit that does not wait for the disk does not write the log back",
        "eoq/daemon/store/sqlite/database.py",
        old="let = durable and (",
        new="let = True and (",
        tests="tests/model/test_store_parts.py",
        select="write_the_log_back",
    ),
    Guard(
        "settle is durable",
        "eoq/daemon/broker/settling.py",
        old="routed.messages, self._settings, forwarded, awaits), done)",
        new="routed.messages, self._settings, forwarded, awaits), done, durable=False)",
        tests="tests/power/test_power_loss.py",
        select="sync",
        needs="strace",
    ),
    Guard(
        "a copy without its log is refused",
        "eoq/daemon/store/sqlite/open_mark.py",
        old="if number != str(path.stat().st_ino):",
        new="if False:",
        tests="tests/faults/test_copies.py",
        select="without_its_log",
    ),
    Guard(
        "a copy that SQLite has made is served",
        "eoq/daemon/store/sqlite/open_mark.py",
        old="if marked_schema != str(schema):",
        new="if False:",
        tests="tests/faults/test_copies.py",
        select="sqlite_made",
    ),
    Guard(
        "the log stays where the stop was not clean",
        "eoq/daemon/store/sqlite/open_mark.py",
        old="            if _read(file) is not None:\n                reader",
        new="            if False:\n                reader",
        tests="tests/faults/test_full_disk.py",
        select="stops_and_starts_on_a_full_disk",
    ),
    Guard(
        "seq is not used twice",
        "eoq/daemon/store/sqlite/sending/seqs.py",
        old="(select coalesce(max(value), 1) from counter where name = 'next_seq')",
        new="1",
        tests="tests/integration/test_config.py",
        select="seq",
    ),
    Guard(
        "group is lined up again",
        "eoq/daemon/store/sqlite/tables/groups.py",
        old="""where queue = ? and "group" = ? and state in ('ready', 'delayed')""",
        new="""where queue = ? and "group" = ? and state in ('ready', 'delayed') and false""",
        tests="tests/integration/test_admin.py",
        select="group",
    ),
    Guard(
        "contents follow a rollback",
        "eoq/daemon/store/sqlite/tables/contents.py",
        old="self._database.on_rollback(partial(self._by_queue.__setitem__, queue_id, content))",
        new="pass",
        tests="tests/integration/test_limits.py",
    ),
    Guard(
        "id conflict stores nothing of its request",
        "eoq/daemon/store/sqlite/sending/puts.py",
        old="self._delete_from(first)\n                raise IdConflict(",
        new="raise IdConflict(",
        tests="tests/integration/test_sending.py",
        select="refused_batch or conflict",
    ),
    Guard(
        "once is fenced by its token",
        "eoq/daemon/store/sqlite/tables/once.py",
        old="where token = excluded.token and state = 'running'",
        new="where true",
        tests="tests/integration/test_once.py",
    ),
    # ── outbox ──────────────────────────────────────────────────────────────────────────────────────────────
    Guard(
        "a relay whose disk failed to sync sends nothing more",
        "eoq/outbox/file.py",
        old="self._has_failed_to_sync = True",
        new="self._has_failed_to_sync = False",
        tests="tests/integration/test_relay_disk.py",
    ),
    Guard(
        "relay marks rows before it sends them",
        "eoq/outbox/relay.py",
        old="await _run(partial(self._file.mark, keys))",
        new="(keys, 1e12)",
        tests="tests/faults/test_relay_crash_points.py",
    ),
    Guard(
        "row that is set aside holds its group",
        "eoq/outbox/file.py",
        old="and aside.seq < next.seq",
        new="and aside.seq < -1",
        tests="tests/integration/test_relay.py",
        select="group",
    ),
    Guard(
        "relay waits behind a writer",
        "eoq/outbox/file.py",
        old='"begin immediate" if behind_writers else "begin"',
        new='"begin"',
        tests="tests/integration/test_relay.py",
        select="commit",
        needs="strace",
    ),
    Guard(
        "relay removes only the row that it sent",
        "eoq/outbox/file.py",
        old='f"delete from eoq_outbox where seq = ? and {_KEY} is ?"',
        new='f"delete from eoq_outbox where seq = ? and ({_KEY} is ? or true)"',
        tests="tests/integration/test_relay_restore.py",
    ),
    Guard(
        "a refusal removes only the mark of its own try",
        "eoq/outbox/file.py",
        old="set try = null",
        new="set try = excluded.try",
        tests="tests/integration/test_relay_restore.py",
        select="refusal",
    ),
    Guard(
        "a relay removes no mark of another row",
        "eoq/outbox/file.py",
        old="where seq = ?1 and not exists (select 1 from eoq_outbox where seq = ?1)",
        new="where seq = ?1",
        tests="tests/integration/test_relay_restore.py",
        select="frozen",
    ),
    # ── spool ───────────────────────────────────────────────────────────────────────────────────────────────
    Guard(
        "sender syncs the spool's folder",
        "eoq/spool/sender.py",
        old="os.fsync(folder)",
        new="pass",
        tests="tests/integration/test_spool_senders.py",
        needs="strace",
    ),
    Guard(
        "daemon syncs the spool's folder",
        "eoq/daemon/services/spool/spool_queue.py",
        old="os.fsync(claimed)\n                os.fsync(here)",
        new="pass",
        tests="tests/faults/test_spool_crash_points.py",
    ),
    Guard(
        "old spool file is not sent again",
        "eoq/daemon/services/spool/spool_queue.py",
        old="if not tries or time.time() - min(tries) <= resend_within:",
        new="if True:",
        tests="tests/integration/test_spool.py",
        select="left_behind or retention",
    ),
    # ── permissions ─────────────────────────────────────────────────────────────────────────────────────────
    Guard(
        "request needs the right of its user",
        "eoq/daemon/server/server.py",
        old="        check(session, request)\n",
        new="",
        tests="tests/cli/test_permissions.py",
    ),
    Guard(
        "receipt needs the right on its queue",
        "eoq/daemon/services/permissions.py",
        old="            need = Need(need.right, queue)\n",
        new="            return\n",
        tests="tests/cli/test_permissions.py",
    ),
    Guard(
        "file of a spool needs the right of its owner",
        "eoq/daemon/services/spool/spool_queue.py",
        old="if (refusal := self._why_not(owner, self.queue)) is not None:",
        new="if (refusal := None) is not None:",
        tests="tests/cli/test_permissions.py",
    ),
    Guard(
        "socket in a folder of others is not trusted",
        "eoq/transport/owners.py",
        old="if open_to_all and not (",
        new="if False and not (",
        tests="tests/cli/test_permissions.py",
    ),
    # ── imports ─────────────────────────────────────────────────────────────────────────────────────────────
    Guard(
        "import compares the content of a known id",
        "eoq/daemon/store/sqlite/sending/imports.py",
        old="if row[0] != digest_of(entry):",
        new="if False:",
        tests="tests/cli/test_moving.py",
    ),
    # ── dashboard ───────────────────────────────────────────────────────────────────────────────────────────
    Guard(
        "dashboard is served under names of loopback only",
        "eoq/dashboard/gate.py",
        old="if len(hosts) != 1 or _name_of(hosts[0]) not in LOOPBACK:",
        new="if len(hosts) != 1:",
        tests="tests/dashboard/test_dashboard.py",
        select="another_site",
    ),
    Guard(
        "dashboard acts for its own pages only",
        "eoq/dashboard/gate.py",
        old="foreign = any(origin",
        new="foreign = False and any(origin",
        tests="tests/dashboard/test_dashboard.py",
        select="another_site",
    ),
    Guard(
        "dashboard is for who has its token",
        "eoq/dashboard/gate.py",
        old='and _same(request.cookies.get(_COOKIE, ""), self._secret)',
        new="",
        tests="tests/dashboard/test_dashboard.py",
        select="token",
    ),
    # ── streams ─────────────────────────────────────────────────────────────────────────────────────────────
    Guard(
        "message in another partition is not taken",
        "eoq/bridge/jetstream/wire/content.py",
        old="(right := partition_of(id if group is None else group, count)) != partition:",
        new="(right := partition_of(id if group is None else group, count)) < 0:",
        tests="tests/integration/test_jetstream_names.py",
    ),
    Guard(
        "partition belongs to one daemon's file",
        "eoq/bridge/jetstream/partition.py",
        old="if record.identity != identity and not record.given_up:",
        new="if False:",
        tests="tests/integration/test_jetstream.py",
        select="belongs_to_one_file",
        needs="nats-server",
    ),
    Guard(
        "place in a stream is noted behind what is stored",
        "eoq/bridge/jetstream/ingest.py",
        old="        left = await arrivals.sendable(opened.partitions)\n",
        new="        left = await arrivals.sendable(opened.partitions)\n        await partition.taken(messages)\n",
        tests="tests/integration/test_jetstream_streams.py",
        select="not_noted",
        needs="nats-server",
    ),
    Guard(
        "stream that was made anew is read from its beginning",
        "eoq/bridge/jetstream/partition.py",
        old='return (id_of(headers) or "") == record.taken_id',
        new="return True",
        tests="tests/integration/test_jetstream_streams.py",
        select="made_anew",
        needs="nats-server",
    ),
    # ── turns of many clients ───────────────────────────────────────────────────────────────────────────────
    Guard(
        "held lines have a turn after each transaction",
        "eoq/daemon/server/traffic.py",
        old="if self.held and self._with_lines:",
        new="if False and self._with_lines:",
        tests="tests/faults/test_turns.py",
        select="a_long_line",
    ),
    Guard(
        "client with nothing under way has a line of its own",
        "eoq/daemon/server/traffic.py",
        old="(self._quick if quick else self._line)[peer] = None",
        new="self._line[peer] = None",
        tests="tests/faults/test_turns.py",
        select="with_one_request",
    ),
    Guard(
        "lines that come one by one wait for others as well",
        "eoq/daemon/server/connection.py",
        old="must_wait = self._under_way or",
        new="must_wait =",
        tests="tests/faults/test_turns.py",
        select="one_by_one",
    ),
    Guard(
        "large messages come back in steps",
        "eoq/daemon/broker/redelivery.py",
        old="leases[begin - 1].delivery.size) <= STEP_BYTES",
        new="leases[begin - 1].delivery.size) < 2**62",
        tests="tests/faults/test_turns.py",
        select="large_messages_come_back",
    ),
    Guard(
        "receives that find nothing rest while messages come",
        "eoq/daemon/broker/receivers.py",
        old="receiver.unmet != line.unmet",
        new="receiver.wakeups != line.wakeups",
        tests="tests/faults/test_turns.py",
        select="find_nothing",
    ),
    Guard(
        "daemon that stops waits for the leases of closed connections",
        "eoq/daemon/server/server.py",
        old="while self.unended:",
        new="while False:",
        tests="tests/faults/test_turns.py",
        select="stops_waits",
    ),
)

ROOT: Final = Path(__file__).resolve().parents[1]
PARTS: Final = ("eoq", "cli", "tests", "examples", "pyproject.toml", "README.md", "LICENSE")
"""The parts of the tree that are copied."""
SECONDS: Final = 600.0
"""Time limit of one run of pytest."""
GRACE: Final = 30.0
"""How many seconds an interrupted pytest has to stop its daemons."""


MARKS: Final = ("not slow", "slow")
"""The tests that are run for a guard: the slow ones only if the others pass without it."""
NO_TESTS: Final = 5
"""The exit status of pytest where nothing was selected."""


class GuardError(Exception):
    """An entry of `GUARDS` proves nothing: it has to be corrected."""


class NotCaught(Exception):
    """All tests passed without the guard."""


class Skipped(Exception):
    """The tests of the guard cannot run on this machine."""


@dataclass
class Guards:
    """The check of guards, each in a scratch copy of the tree below ``folder``."""

    folder: Path
    _green: dict[tuple[str, str, str], tuple[int, str]] = field(default_factory=dict)

    def check(self, guard: Guard) -> str:
        """Return the name of the test that fails without the guard.

        Raises `NotCaught`, `Skipped`, or `GuardError`: the text is not there, the tests fail also with the guard, or
        they cannot run without it.
        """
        path = ROOT / guard.file
        if not path.is_file():
            raise GuardError(f"there is no {guard.file} any more")
        text = path.read_text()
        if (count := text.count(guard.old)) != 1:
            there = "is not there any more" if count == 0 else f"is there {count} times"
            raise GuardError(f"the text {there}: {guard.old!r} in {guard.file}")
        without = text.replace(guard.old, guard.new)
        if guard.file.endswith(".py"):
            try:
                compile(without, guard.file, "exec")
            except SyntaxError as error:
                raise GuardError(f"the new text is no Python: {error}") from error
        if guard.needs and shutil.which(guard.needs) is None:
            raise Skipped(f"there is no {guard.needs} on this machine")
        for marks in MARKS:
            if not self._require_green(guard, marks):
                continue
            with self._copy() as tree:
                (tree / guard.file).write_text(without)
                for _ in range(TRIES):
                    status, output = _run_tests(tree, guard, marks)
                    if status != 0:
                        break
            if status == 0:
                continue
            # Only a test that failed counts: a file that cannot be imported, a daemon that cannot start, prove nothing.
            failed = re.search(r"^FAILED (.+?)(?: - |$)", output, re.MULTILINE)
            if failed is None:
                raise GuardError(f"{_described(guard)} could not run without it (status {status}):\n{_tail(output)}")
            return failed[1]
        raise NotCaught(f"all of {_described(guard)} passed without it")

    def _require_green(self, guard: Guard, marks: str) -> bool:
        """Raise `GuardError` unless the tests of the guard pass as they are, once. Return whether there are any."""
        key = (guard.tests, guard.select, marks)
        if key not in self._green:
            with self._copy() as tree:
                _require_used(tree)
                status, output = _run_tests(tree, guard, marks)
                if status not in (0, NO_TESTS):  # once more: on a busy machine, a deadline may have passed
                    status, output = _run_tests(tree, guard, marks)
            self._green[key] = status, _tail(output)
        status, tail = self._green[key]
        if status not in (0, NO_TESTS):
            raise GuardError(f"{_described(guard)} must pass with the guard, but: status {status}:\n{tail}")
        return status == 0

    @contextmanager
    def _copy(self) -> Iterator[Path]:
        tree = Path(tempfile.mkdtemp(prefix="tree-", dir=self.folder))
        try:
            for part in PARTS:
                if (ROOT / part).is_dir():
                    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
                    shutil.copytree(ROOT / part, tree / part, ignore=ignored)
                else:
                    shutil.copy(ROOT / part, tree / part)
            (tree / "eoq" / "cli").symlink_to("../cli")  # where pyproject.toml installs it
            yield tree
        finally:
            shutil.rmtree(tree)


def _environment(tree: Path) -> dict[str, str]:
    """Return the variables of a process that imports eoq from the scratch copy, wherever it is started."""
    own = ("EOQ_", "PYTEST_")
    others = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    # A compiled file could be of the text with the guard, which may have been written in the same second.
    # Many guards are noticed by a wait that does not end, so these tests are less patient.
    return {**others, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", "TEST_PATIENCE": "20"}


def _require_used(tree: Path) -> None:
    """Raise `GuardError` if a process of the tests would import the installed eoq, in which all guards are there."""
    code = "import eoq, eoq.cli, eoq.outbox.file; print(eoq.__file__, eoq.cli.__file__, eoq.outbox.file.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=_environment(tree), cwd="/", capture_output=True, text=True, check=False
    )
    files = done.stdout.split()
    if len(files) != 3 or not all(file.startswith(str(tree)) for file in files):
        raise GuardError(f"the scratch copy is not what is tested: {done.stdout}{done.stderr}")


def _run_tests(tree: Path, guard: Guard, marks: str) -> tuple[int, str]:
    """Run the tests of a guard up to the first failure. Return the exit status of pytest and its output."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "2", "-p", "no:cacheprovider", "-m", marks]
    command.append(guard.tests)
    if guard.select:
        command += ["-k", guard.select]
    with subprocess.Popen(
        command,
        cwd=tree,
        env=_environment(tree),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=SECONDS)
        except BaseException as error:
            process.send_signal(signal.SIGINT)  # so that its fixtures stop their daemons
            try:
                process.communicate(timeout=GRACE)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise GuardError(f"{_described(guard)} did not end within {SECONDS:g} s") from None
            raise
    return process.returncode, output


def _described(guard: Guard) -> str:
    return guard.tests + (f" -k {guard.select!r}" if guard.select else "")


def _tail(output: str) -> str:
    return "\n".join(output.splitlines()[-30:])


def main() -> int:
    """Check the guards that the arguments name. Return the exit status."""
    parser = argparse.ArgumentParser(description="Remove each guard of eoq once, and check that a test fails.")
    parser.add_argument("--list", action="store_true", help="print the names of the guards")
    parser.add_argument("--only", metavar="NAME", action="append", help="check only this guard; may be repeated")
    arguments = parser.parse_args()
    names = [guard.name for guard in GUARDS]
    if unknown := sorted(set(arguments.only or ()) - set(names)):
        parser.error(f"there is no guard {unknown[0]!r}; --list prints the names")
    if arguments.list:
        print("\n".join(names))
        return 0
    bad = 0
    with tempfile.TemporaryDirectory(prefix="eoq-guards-") as folder:
        guards = Guards(Path(folder))
        for guard in GUARDS:
            if arguments.only and guard.name not in arguments.only:
                continue
            start = time.monotonic()
            try:
                outcome = f"caught by {guards.check(guard)}"
            except Skipped as reason:
                outcome = f"skipped: {reason}"
            except NotCaught as reason:
                outcome, bad = f"NOT CAUGHT: {reason}", bad + 1
            except GuardError as reason:
                outcome, bad = f"ERROR: {reason}", bad + 1
            print(f"{guard.name}: {outcome} ({time.monotonic() - start:.0f} s)", flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
