"""A conformance double of TensorFlow's model server: for a machine that has none, and for tests. Not for production.

It follows the rules that the server's source states (release 2.14): which folders are versions, when one is loaded and
unloaded, what a request over REST or gRPC is answered, which error has which words and code. It is not TensorFlow
Serving, and says so in its banner and in a header of every answer. Where it differs, on purpose:

  - it loads with Python's loader, which refuses a version without variables; the server serves that one, in silence;
  - it listens on loopback unless told otherwise, limits how large a request may be and how long a client may take, and
    gives out its metrics without being asked to in a monitoring.config;
  - with --enable-batching it has the server's queues, sizes, timeouts and errors, but not enable_large_batch_splitting nor
    pad_variable_length_inputs (which it refuses), no batching_params.pbtxt of a model's own, and its threads share one
    Python: it shows what is batched, not how fast. Later releases add numbers to the sentence about a full queue;
  - it runs everything on the devices TensorFlow finds, and knows no flags of the server's for its threads;
  - a message of TensorFlow's own that a request gets (a wrong shape, say) is that of the TensorFlow installed here.

    status      what an error is: the codes, as REST and gRPC know them
    config      models.config: which models, which of their versions, which labels
    manager     the poller, the loaded versions, and the swap from one to the next
    servable    one loaded version: a session, its warm-up, its answers
    batching    requests of several clients as one batch, where that is asked for
    inference   requests to answers: predict, classify, regress, metadata, status
    json_tensor, json_writer    JSON to tensors and back
    rest, rpc   the two ports; metrics, what a monitoring system reads at the first
    server      all of it, started and stopped as one
"""
