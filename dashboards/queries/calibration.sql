-- Can an arm's confidence be believed? Test rows in ten bins of equal numbers by the probability of the predicted class;
-- accuracy below confidence: more sure than right. Of classifications alone.
WITH read AS (
    SELECT predictions.*, list_max(outputs) AS confidence, list_position(outputs, list_max(outputs)) - 1 AS predicted
    FROM predictions JOIN trials USING (trial_id)
    WHERE trials.phase = 'test' AND trials.status = 'complete' AND len(predictions.targets) = 0
), binned AS (
    SELECT arm, confidence, predicted = label AS is_right,
           ntile(10) OVER (PARTITION BY arm ORDER BY confidence, fold, seed_index, trial_id, "row") AS bin
    FROM read
)
SELECT arm, bin, avg(confidence) AS confidence, avg(CAST(is_right AS DOUBLE)) AS accuracy, count(*) AS rows
FROM binned
GROUP BY arm, bin
ORDER BY arm, bin
