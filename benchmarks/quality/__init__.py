"""Does consensus help, and when? Questions as data, one harness for all of them.

``_question`` says what a question is, ``_fit`` trains one arm of it on all seeds and
rates at once, ``_cells`` keeps what is finished, ``_inference`` is the statistics,
``_tables`` and ``_pictures`` show what was found. Each other file is one question.
"""
