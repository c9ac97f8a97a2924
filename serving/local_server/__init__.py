"""A local model server that follows TensorFlow Serving's rules: to try a version out, and for tests. Not for production.

It follows the rules that the server's source states (release 2.14): which folders are versions, when one is loaded and
unloaded, what a request over REST or gRPC is answered, which error has which words and code. It is not TensorFlow
Serving, and says so in its banner and in a header of every answer. It differs on purpose:

  - it loads with Python's loader, which refuses a version without variables; the server serves such a version silently;
  - it listens on loopback unless told otherwise, limits how large a request may be and how long a client may take, and
    publishes its metrics without a monitoring.config;
  - with --enable-batching it has the server's queues, sizes, timeouts and errors, but supports neither
    enable_large_batch_splitting nor pad_variable_length_inputs (both are refused) nor a model's own batching_params.pbtxt,
    and its threads share one Python interpreter: it shows what is batched, not how fast. Later releases of the server add
    numbers to the message of a full queue;
  - it runs everything on the devices TensorFlow finds, and does not know the server's flags for threads;
  - a message of TensorFlow's own (about a wrong shape, say) is that of the TensorFlow installed here.

    server      the server, started and stopped as a whole
    rest, rpc   the two ports; json_tensor, json_writer: JSON to tensors and back
    model_info  which models and versions are served, and in which state
    manager     polls the base paths, and replaces a version by the next
    warm_up     a version's warm-up requests, answered before it serves
    inference   predict, classify and regress requests to answers
    servable    a loaded version: which requests are in it, and its session
    batching    requests of several clients as one batch; metrics, what a monitoring system reads

Errors, models.config and the session of a version are shared with the rest of serving (`serving.model_server`).
"""
