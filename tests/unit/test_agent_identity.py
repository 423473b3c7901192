import os
from multiprocessing import get_context

from timesplit.instrumentation import identity
from timesplit.tracing.process import worker_resource


def instance_of_spans() -> str:
    return str(worker_resource(frozenset()).attributes["service.instance.id"])


def test_journal_and_spans_have_the_same_id() -> None:
    made = identity.make()
    assert len(made) == 16
    assert instance_of_spans() == made


def test_spans_that_are_numbered_anew_are_another_worker() -> None:
    identity.make()
    assert instance_of_spans() != instance_of_spans()


def test_a_fork_is_somebody_else() -> None:
    made = identity.make()
    read, write = os.pipe()
    child = get_context("fork").Process(target=lambda: os.write(write, identity.share().encode()))
    child.start()
    child.join()
    assert os.read(read, 16).decode() != made
    os.close(read)
    os.close(write)
