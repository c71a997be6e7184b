"""How conversations between two bots begin, where nobody says how: texts written for this, and used for nothing else.

They are everyday small talk, as the bundled model's corpora have it. None is one of the prompts that a model is judged by
(`bundled/prompts.json`), so looking at self-chats spoils no judgement.
"""

TURNS = 8  # the replies of both bots together
OPENINGS = (
    "Hi! How are you?",
    "Hello there.",
    "What are you doing today?",
    "How was your weekend?",
    "I am so tired.",
    "I have great news!",
    "I had a terrible day at work.",
    "It has been raining since Monday.",
    "What do you like to do in your free time?",
    "What kind of music do you like?",
    "Have you watched anything good lately?",
    "What is your favorite movie?",
    "Do you read a lot?",
    "I just finished a really long book.",
    "Do you like to cook?",
    "I am hungry. What should I eat?",
    "Coffee or tea?",
    "I baked a cake and it fell apart.",
    "Do you play any sports?",
    "Did you see the game last night?",
    "I want to learn the piano.",
    "My dog ate my homework.",
    "I think cats are smarter than dogs.",
    "Tell me about your family.",
    "My sister is getting married next month.",
    "Where do you live?",
    "I would love to travel more.",
    "What do you do for a living?",
    "I am looking for a new job.",
    "School starts again tomorrow.",
    "Tell me a joke.",
    "I can't find my keys anywhere.",
)
