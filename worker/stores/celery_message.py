"""The wake-up message: a Celery task call in kombu's Redis wire form, so that the store can send it from a script.

Sources: message protocol 2 (docs.celeryq.dev, "Message Protocol"; `celery.app.amqp.AMQP.as_task_v2`) inside the
envelope of `kombu.transport.virtual.Channel.prepare_message`, pushed as `kombu.transport.redis.Channel._put` does.
The body stays plain JSON: without `body_encoding`, kombu decodes nothing (it uses base64 only to carry bytes).
"""

import json

TASK = "ferry.run_job"

JOB, TAG, QUEUE, STEP = "@job@", "@tag@", "@queue@", "@step@"
"""Filled in by `wake` in moves.lua; a delivery tag must differ from message to message."""


def wake_up_template() -> str:
    """The message, with the job's id (which is also the task's), queue, priority and delivery tag left open.

    The priority is a number, which takes the place of the placeholder with its quotes.
    """
    return json.dumps(
        {
            "headers": _headers(),
            "properties": {
                "correlation_id": JOB,
                "reply_to": "",
                "delivery_mode": 2,
                "delivery_info": {"exchange": "", "routing_key": QUEUE},
                "priority": STEP,
                "delivery_tag": TAG,
            },
            "content-type": "application/json",
            "content-encoding": "utf-8",
            "body": json.dumps([[JOB], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]),
        }
    )


def _headers() -> dict[str, object]:
    return {
        "lang": "py",
        "task": TASK,
        "id": JOB,
        "root_id": JOB,
        "parent_id": None,
        "group": None,
        "group_index": None,
        "shadow": None,
        "eta": None,
        "expires": None,
        "retries": 0,
        "timelimit": [None, None],
        "argsrepr": f"('{JOB}',)",
        "kwargsrepr": "{}",
        "origin": "ferry",
        "ignore_result": True,
        "replaced_task_nesting": 0,
        "stamped_headers": None,
        "stamps": {},
    }
