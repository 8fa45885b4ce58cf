-- The bucket of one tenant over all processes (GCRA). Counts so many jobs and gives how far ahead it is full again; all times in microseconds.
local now, jobs, each, per = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
if now == 0 then
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
end
local full_at = math.max(tonumber(redis.call('GET', KEYS[1]) or '0'), now) + jobs * each
-- A clock that was set back keeps nobody out for long.
full_at = math.min(full_at, now + 2 * per)
if full_at > now then
  redis.call('SET', KEYS[1], string.format('%.0f', full_at), 'PX', math.ceil((full_at - now) / 1000))
end
return math.floor(full_at - now)
