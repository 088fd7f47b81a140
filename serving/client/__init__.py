"""A client of the service for Python programs; nothing but the standard library.

::

    client = Client("http://127.0.0.1:3000", key)
    answer = client.predict(["wall.jpg"], Options(backend="aer", shots=4096))
    job = client.wait(client.submit(["a.jpg", "b.jpg"], Options(backend="ibm:ibm_fez", shots=2000)))
    print(answer.predictions[0].label, job.answer.predictions[0].interval)
"""

from __future__ import annotations

from serving.client.api import Client
from serving.client.transport import ApiError
from serving.client.values import Answer, Estimate, Inspection, Job, Options, Prediction, Tile

__all__ = ["Answer", "ApiError", "Client", "Estimate", "Inspection", "Job", "Options", "Prediction", "Tile"]
