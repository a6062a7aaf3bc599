-- What did racing save? One row per arm: how many trials it stopped, after how many epochs, of how many planned.
SELECT study, arm, count(*) AS trials, count(*) FILTER (status = 'pruned') AS pruned,
       min(stopped_epoch) AS earliest, avg(stopped_epoch) AS mean_epochs, max(stopped_epoch) AS latest,
       max(CAST(config_json ->> '$.epochs' AS BIGINT)) AS planned_epochs
FROM trials
WHERE phase = 'search'
GROUP BY study, arm
ORDER BY study, arm
