"""The benchmark harness: what is measured (``suite``), how (``runner``, ``timing``), against which limits (``work``,
``ceilings``), and what becomes of it (``results``, ``tables``, ``plots``, ``html``)."""
