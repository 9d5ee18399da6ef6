"""Pages that people read: self-contained HTML files that need no network, no script and no other file.

In come results of the other rooms, such as the report of `check_data` or a comparison of evaluations. Out goes one HTML
file with pictures, charts and tables, readable on a phone, in light and dark. It knows neither the network nor the
options of a run.

Read in this order:

    html_page       elements, figures, tables and the frame of a page; every text is escaped
    svg_charts      histograms and bars as inline SVG, each with its numbers as a table
    pictures        crops and overlays as data URIs
    fault_views     the picture of a fault: around its object, with mask and box
    data_sections   the parts of the page on a data set
    data_report     the page that `check-data --report` writes
    compare_charts  curves in one frame, differences with their intervals
    compare_page    the page that `compare` writes
"""
