-- Entries that a worker has held for too long are the asker's, who shuts the old holder out in MongoDB and gives them back.
-- How long that is the asker tells by its own clock. It notes when it has made which look, and names one that is a lease ago: what was
-- held then, and is held still, has lapsed.
-- ARGV: now, lines, consumer, epoch, look (what was held before this one of that index has lapsed; 0: nothing has).
-- Gives: epoch, the number of this look (what is held now was held before it), then for each: line, entry, id.
local lines, consumer = tonumber(ARGV[2]), ARGV[3]
local name = epoch_of_this_run()
if not name then return {'', '0'} end
even_when_full()
local look, some_held = name == ARGV[4] and tonumber(ARGV[5]) or 0, false
local answer = {name, ''}

-- The names of entries of a line that this worker has held since before that look.
local function lapsed(line, worker)
  if look == 0 then return {} end
  local time = redis.call('TIME')
  local idle = time[1] * 1000 + math.floor(time[2] / 1000) - (look * LOOK - LOOK / 2)
  local names = {}
  for _, pending in ipairs(redis.call('XPENDING', of(line, 'jobs'), GROUP, 'IDLE', number(idle), '-', '+', 256, worker)) do
    names[#names + 1] = pending[1]
  end
  return names
end

for line = 0, lines - 1 do
  local stream = of(line, 'jobs')
  -- Worker by worker: what was given back waits as long as it has to, and may be much.
  for _, worker in ipairs(redis.call('XINFO', 'CONSUMERS', stream, GROUP)) do
    local who, held = worker[2], worker[4]
    if held > 0 and who ~= FREE then
      some_held = true
      for _, entry in ipairs(lapsed(line, who)) do
        local entries = redis.call('XCLAIM', stream, GROUP, consumer, '0', entry)
        if not entries[1] then redis.call('XACK', stream, GROUP, entry) end
        for _, one in ipairs(ours(line, entries)) do
          hold(line, {one[1]}, consumer)
          redis.call('HSET', index, one[2][2], held_at(line, one[1], consumer))
          answer[#answer + 1] = tostring(line)
          answer[#answer + 1] = one[1]
          answer[#answer + 1] = one[2][2]
        end
      end
    elseif held == 0 and worker[6] > 3600000 then
      -- Workers that have gone leave their names behind.
      redis.call('XGROUP', 'DELCONSUMER', stream, GROUP, who)
    end
  end
  redis.call('ZREMRANGEBYSCORE', of(line, 'resting'), '-inf', ARGV[1])
end
-- Where nothing is held there is nothing to tell apart.
answer[2] = tostring(some_held and redis.call('HINCRBY', state, 'looks', 1) or redis.call('HGET', state, 'looks'))
return answer
