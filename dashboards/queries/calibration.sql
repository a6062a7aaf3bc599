-- Can an arm's confidence be believed? Test rows of a classification in ten bins of equal numbers by the probability of
-- the predicted class; accuracy below confidence: more sure than right.
WITH read AS (
    SELECT *, list_max(outputs) AS confidence, list_position(outputs, list_max(outputs)) - 1 = label AS is_right
    FROM predictions
    WHERE len(targets) = 0
      AND trial_id IN (SELECT trial_id FROM trials WHERE phase = 'test' AND status = 'complete')
), binned AS (
    SELECT *, ntile(10) OVER (
        PARTITION BY study, arm ORDER BY confidence, fold, seed_index, trial_id, "row"
    ) AS bin
    FROM read
)
SELECT study, arm, bin, avg(confidence) AS confidence, avg(CAST(is_right AS DOUBLE)) AS accuracy, count(*) AS rows
FROM binned
GROUP BY study, arm, bin
ORDER BY study, arm, bin
