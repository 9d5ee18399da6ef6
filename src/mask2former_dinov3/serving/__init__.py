"""A web page and an HTTP API for one model, on one machine.

Requests with one image each come in: its file, and options in the query. A COCO file of one image goes out, or an error
as JSON. Images that wait at the same time are predicted in one batch.

Read in this order:

    server       the verb `serve`: loads the model, listens, stops on a signal
    limits       what one server and one request may ask for, and the errors of a request that is refused
    schema       options and answers of the API as pydantic models and in OpenAPI
    queue        bounded queue with dynamic batching between the requests and the model
    connections  a bounded number of connections, none that asks nothing
    middleware   request ids, limits on bodies, the log, counts for Prometheus
    doors        names in Host and Origin that are answered; no CORS
    app          the routes /predict, /healthz, /metrics, and every error as JSON
    page         the page at /: Gradio's controls around the viewer of `browser/`
"""
