"""What runs in a browser: the viewer that two pages share, and a folder with a model that needs no server.

A model's classes and thresholds come in, or an exported .onnx file. Parts of the page of `serve` go out, or a folder in
which the browser itself predicts, with onnxruntime-web, and sends nothing anywhere. The scripts are in `static/`:
`viewer.js` for both pages; `page.js`, `worker.js`, `pixels.js`, `instances.js` and `tiles.js` for the folder.

Read in this order:

    viewer_page  the viewer's settings and the parts of HTML that both pages show
    web_runtime  onnxruntime-web: fetched once with npm, checked, kept in the user's cache
    web_folder   the folder that `export --web` writes
"""
