"""One schedule for each way in which a promise was once broken, or could be: what happens when, to the millisecond."""

from __future__ import annotations

from tests.virtual.scene import scene_of


def test_an_echo_of_an_earlier_round_confirms_no_leader() -> None:
    """n2's acknowledgements reach n1 half a second late, and still do when n2 has helped to elect another leader."""
    with scene_of(11) as scene:
        scene.slow("n2", "n1", 0.5)
        scene.world.pass_s(3.0)
        asking = scene.engine("n2").reads
        scene.world.run(lambda: asking._in_flight, 3.0)
        scene.world.run(lambda: not asking._in_flight, 3.0)  # so that none of its questions begins a round meanwhile
        for other in ("n2", "n3"):
            for end in scene.network.connections("n1", other):
                scene.network.reset(end)  # which is news to them: they do not wait for an election timeout
        scene.cut("n1>n2", "n1-n3")
        scene.world.run(lambda: scene.cluster.leader is not scene.node("n1"), 0.3)
        led = scene.cluster.leader
        assert led is not None
        newer = scene.write(led.name, "x", 0.1)
        assert newer.outcome == "ok"
        read = scene.begin(scene.work.get(scene.clients["n1"], "x"))
        scene.world.pass_s(6.0)
        scene.network.mend()
        scene.world.run(read.done, 10.0)


def test_a_read_on_a_follower_does_not_join_a_question_that_was_asked_before_it() -> None:
    """n2 hears everything from its leader a third of a second late, the answer to an earlier question too."""
    with scene_of(12) as scene:
        scene.slow("n1", "n2", 0.3)
        scene.world.pass_s(2.0)
        first = scene.begin(scene.work.get(scene.clients["n2"], "x"))
        scene.world.pass_s(0.1)
        scene.finish(scene.work.put(scene.clients["n1"], "x"), 0.1)
        second = scene.begin(scene.work.get(scene.clients["n2"], "x"))
        scene.world.run(lambda: bool(first.done() and second.done()), 5.0)
        assert [each.outcome for each in scene.cluster.judge.operations[-3:]] == ["ok"] * 3


def test_an_answer_to_a_question_that_was_given_up_answers_no_other() -> None:
    """What n2 asks is answered after more than its deadline, so each answer comes while a later question is open."""
    with scene_of(13) as scene:
        scene.slow("n1", "n2", 1.3)
        scene.world.pass_s(5.0)
        reads = []
        for _ in range(30):  # at every moment of the time between a question and the end of it
            scene.finish(scene.work.put(scene.clients["n1"], "x"), 1.0)
            reads.append(scene.begin(scene.work.get(scene.clients["n2"], "x")))
            scene.world.pass_s(0.07)
        scene.network.mend()
        scene.world.run(lambda: all(read.done() for read in reads), 20.0)


def test_a_write_that_was_forwarded_in_one_term_is_not_taken_in_another() -> None:
    """What n2 forwards takes two seconds; meanwhile another node leads, takes the write, and gives leadership back."""
    with scene_of(14) as scene:
        scene.slow("n2", "n1", 2.0)
        scene.world.pass_s(4.0)
        write = scene.begin(scene.work.put_once(scene.clients["n2"], "y"))
        scene.world.pass_s(0.1)
        scene.lead("n3")
        scene.world.run(write.done, 1.0)
        assert scene.cluster.judge.operations[-1].outcome == "ok"
        scene.lead("n1")
        scene.world.pass_s(4.0)


def test_what_followers_had_of_a_leaders_log_counts_for_nothing_when_it_leads_again() -> None:
    """n1 leads with a disk that hangs, and n2 acknowledges what n1 has not written. Others elect n3, whose log takes
    the place of both. When n1 leads again, n2 holds none of the entries that stand there now.
    """
    with scene_of(15, 5) as scene:
        scene.finish(scene.open("n1", timeout_s=1.0))  # what it asks for is over before anybody else leads
        scene.node("n1").device.hang(1e9)
        scene.cut("n1-n3", "n1-n4", "n1-n5", "n2-n3", "n2-n4", "n2-n5")
        for number in range(3):
            scene.begin(scene.work.put_once(scene.clients["n1"], f"y{number}"))
            scene.world.pass_s(0.05)
        others = [scene.node(name) for name in ("n3", "n4", "n5")]
        scene.world.run(lambda: scene.cluster.leader in others, 6.0)
        led = scene.cluster.leader
        assert led is not None
        scene.network.mend()
        scene.world.run(lambda: scene.engine("n1").replica.term == scene.engine(led.name).replica.term, 3.0)
        scene.world.pass_s(1.0)
        scene.node("n1").device.thaw()
        scene.world.pass_s(2.0)
        assert scene.cluster.leader is led
        transfer = scene.begin(scene.clients[led.name].transfer("n1"))
        scene.world.run(lambda: scene.engine("n1").replica.is_leader, 3.0)
        scene.cut(
            *(f"n1>{name}" for name in ("n2", "n3", "n4", "n5") if name != led.name)
        )  # its first entry does not arrive
        scene.world.pass_s(1.0)
        scene.network.mend()
        scene.world.run(transfer.done, 10.0)
        scene.world.pass_s(2.0)
