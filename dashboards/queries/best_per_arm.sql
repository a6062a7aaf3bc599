-- What was the best proposal of every arm, by what the search is judged on: log-loss, or 1 - CCC?
WITH judged AS (
    SELECT t.study, t.arm, t.fold, t.number, s.score AS score_name, t.parameters,
           if(s.task = 'regression', 1 - CAST(to_json(t.metrics) ->> 'ccc' AS DOUBLE),
              CAST(to_json(t.metrics) ->> 'log_loss' AS DOUBLE)) AS criterion,
           CAST(to_json(t.metrics) ->> s.score AS DOUBLE) AS score
    FROM trials AS t JOIN (SELECT study, max_by(task, revision) AS task, max_by(score, revision) AS score
                           FROM studies GROUP BY study) AS s USING (study)
    WHERE t.phase = 'search' AND t.status = 'complete'
)
SELECT study, arm, fold, number, criterion, score, score_name, parameters
FROM judged
QUALIFY row_number() OVER (PARTITION BY study, arm, fold ORDER BY criterion, number) = 1
ORDER BY study, arm, fold
