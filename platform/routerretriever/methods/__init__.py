"""Ways to train models on a recipe's domains and to answer with them: one file a method.

``base`` says what a method is, ``known`` lists those that a recipe can name.
"""
