"""Pages that people read: self-contained HTML files that need no network, no script and no other file.

In come results of the other rooms, such as the report of `check_data` or the numbers of an evaluation. Out goes one
HTML file with pictures, charts and tables, readable on a phone, in light and dark. It knows neither the network nor the
options of a run.

Read in this order:

    html_page            elements, figures, tables and the frame of a page; every text is escaped
    svg_charts           histograms and bars as inline SVG, each with its numbers as a table
    pictures             crops and overlays as data URIs
    picture_sheets       training samples, and what a model finds in a few images, each on one sheet
    fault_views          the picture of a fault: around its object, with mask and box
    data_sections        the parts of the page on a data set
    data_report          the page that `check-data --report` writes
    compare_charts       curves in one frame, differences with their intervals
    compare_page         the page that `compare` writes
    picture_store        where the pictures of a page lie: in it, or beside it
    image_source         reads the images behind a report
    layered_pictures     pictures whose masks the reader switches on and off
    evaluation_charts    confusion, bars and curves of an evaluation
    evaluation_pictures  the worst, best and most disputed images, and labels in doubt
    evaluation_sections  verdict, run, numbers and errors by kind
    evaluation_report    the page that `evaluate --report` and `train` write
"""
