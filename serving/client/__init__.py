"""Asks a model server, TensorFlow's or the local one, over REST or gRPC: both clients have the same calls and answers.

    with RestClient("http://localhost:8501", "support") as client:
        answer = client.predict(["I lost my card"])
        answer.outputs["label"]          # array([b"card"], dtype=object)

A prediction changes nothing on the server, so it is asked again if the server was not reached, or said that it is
not available; not after a timeout, which would ask a busy server twice. All attempts together end at `timeout_s`.
"""

from serving.client.answers import AVAILABLE, Explanation, Piece, Prediction
from serving.client.errors import ServerError, ServerTimeout, ServerUnavailable
from serving.client.grpc_client import GrpcClient
from serving.client.rest_client import RestClient, checked_address

Client = RestClient | GrpcClient

__all__ = [
    "AVAILABLE",
    "Client",
    "Explanation",
    "GrpcClient",
    "Piece",
    "Prediction",
    "RestClient",
    "ServerError",
    "ServerTimeout",
    "ServerUnavailable",
    "checked_address",
]
