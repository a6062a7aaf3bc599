-- Did every arm get the same search? One row per arm and fold; equal `trials` mean yes, whatever became of them.
SELECT study, arm, fold, count(*) AS trials, count(*) FILTER (status = 'complete') AS complete,
       count(*) FILTER (status = 'pruned') AS pruned,
       count(*) FILTER (status IN ('diverged', 'failed')) AS failed_or_diverged
FROM trials
WHERE phase = 'search'
GROUP BY study, arm, fold
ORDER BY study, arm, fold
