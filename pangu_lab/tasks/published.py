"""Published results on the sentiment of tweets, to hold a claim against. Shares, not percent."""

# Macro recall on the three classes of TweetEval's sentiment task, 12,284 test tweets (the leaderboard in the
# repository of Barbieri et al. 2020, "TweetEval").
TWEETS_TEST_ROWS = 12_284
TWEETS_MACRO_RECALL = {
    "TimeLMs-2021": 0.737,
    "BERTweet": 0.734,
    "RoBERTa-base, retrained on tweets": 0.728,
    "RoBERTa-base": 0.713,
    "SemEval-2017 winners": 0.681,  # Rosenthal et al. 2017, task 4A, the same test tweets
    "SVM": 0.629,
    "FastText": 0.629,
    "LSTM": 0.583,
}
